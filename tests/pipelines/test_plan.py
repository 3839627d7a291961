"""What a plan says of a machine and a model, and that sizes known before loading are those held afterwards."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.containers import write_gguf
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.layers.measure import held_bytes
from comfyui_aitk.pipelines.machine.plan import DeviceMemory, PartNeeds, PartSizes, Plan, make_plan, usable_ram
from comfyui_aitk.pipelines.machine.ram import container_limits, total_ram
from comfyui_aitk.pipelines.models import catalogue, find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from hypothesis import given
from hypothesis import strategies as st
from rendering import wanted

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def device(usable: int) -> DeviceMemory:
    """One of which a plan fills so many bytes."""
    free = (usable + (512 << 20)) * 32 // 31
    free += next(step for step in range(-2, 3) if DeviceMemory(0, free + step).usable == usable)
    return DeviceMemory(free, free)


def ram(usable: int) -> int:
    """A computer's memory of which the weights may take so many bytes."""
    total = (usable + (4 << 30)) * 20 // 19
    return total + next(step for step in range(-2, 3) if usable_ram(total + step) == usable)


ROLES = {"encoder": "text_encoder", "denoiser": "transformer", "autoencoder": "vae"}
ENCODER = PartNeeds("text_encoder", "encoder", "none", {"none": PartSizes(50, (10, 10, 10, 10))})
TRANSFORMER = PartNeeds(
    "transformer",
    "denoiser",
    "none",
    {"none": PartSizes(100, (20, 20, 10, 10, 10)), "qfloat8": PartSizes(60, (12, 12, 6, 6, 6), scratch=5)},
    fallback="qfloat8",
    activations=5,
)
VAE = PartNeeds("vae", "autoencoder", "none", {"none": PartSizes(5)}, activations=30)


@pytest.mark.parametrize(
    ("room", "device_room", "change", "quantization", "streamed", "take_turns"),
    [
        # all fits, at the last byte; on a device without memory of its own nothing is streamed
        (155, 105, {}, "none", (0, 0), False),
        (155, None, {}, "none", (0, 0), False),
        # a byte less of memory: they take turns, down to what the transformer needs alone; then it is quantised
        (154, 105, {}, "none", (0, 0), True),
        (100, 105, {}, "none", (0, 0), True),
        (99, 70, {}, "qfloat8", (0, 0), True),
        (155, 70, {}, "none", (0, 5), False),
        # the room to make a layer dense is counted
        (99, 69, {}, "qfloat8", (0, 3), True),
        # the first two blocks that stay behind save nothing: one computes while the next one comes
        (155, 104, {}, "none", (0, 3), False),
        (155, 95, {}, "none", (0, 3), False),
        (155, 94, {}, "none", (0, 4), False),
        (155, 49, {}, "none", (3, 5), False),
        # too little for anything: as small as it gets
        (10, 0, {}, "qfloat8", (4, 5), True),
        # the user's choices stay
        (99, 105, {"fallback": None}, "none", (0, 0), True),
        (155, 200, {"least_streamed": 1}, "none", (0, 1), False),
        (155, None, {"least_streamed": 9}, "none", (0, 5), False),
        (155, 94, {"least_streamed": 1}, "none", (0, 4), False),
        # live LoRAs need room too
        (155, 105, {"loras": 10}, "none", (0, 3), True),
    ],
)
def test_table(room, device_room, change, quantization, streamed, take_turns):
    memory = None if device_room is None else device(device_room)
    plan = make_plan([ENCODER, replace(TRANSFORMER, **change), VAE], memory, ram(room))
    transformer, encoder = plan.part("transformer"), plan.part("text_encoder")
    assert (transformer.quantization, (encoder.streamed, transformer.streamed)) == (quantization, streamed)
    assert plan.take_turns == take_turns
    assert plan.part("transformer").leaves_before == (("text_encoder",) if take_turns else ())
    assert plan.part("text_encoder").leaves_before == (("transformer",) if take_turns else ())
    assert plan.part("vae").leaves_before == ()
    fits = device_room is None or all(part.device <= device_room for part in plan.parts)
    by_plan = transformer.decided_here
    assert by_plan == (quantization == "qfloat8")
    assert bool(plan.notes) == (by_plan or not fits or transformer.weights > room)


def test_reasons_are_sentences_with_numbers():
    encoder = replace(ENCODER, sizes={"none": PartSizes(18 * 10**9, (10**9,) * 16)})
    wide = {"none": PartSizes(64_400_000_000), "qfloat8": PartSizes(32_200_000_000, (10**9,) * 30)}
    plan = make_plan([encoder, replace(TRANSFORMER, sizes=wide)], device(20 * 10**9), ram(45 * 10**9))
    assert list(plan.reasons) == [
        "the transformer's 64.4 GB do not fit into 45.0 GB of memory: qfloat8, 32.2 GB",
        "the transformer needs 32.2 GB on the device, where 20.0 GB can be used: 15 of its 30 blocks come for their "
        "turn alone",
        "the text encoder's 18.0 GB and the transformer's 32.2 GB do not fit into 45.0 GB of memory together: one "
        "leaves before the other is loaded",
    ]
    assert plan.notes == (plan.reasons[0] + ". This changes the picture",)
    poor = make_plan([replace(TRANSFORMER, sizes=wide)], device(10**9), ram(10**9))
    assert [note.split(": ")[-1] for note in poor.notes] == [
        "qfloat8, 32.2 GB. This changes the picture",
        "the system swaps, or ends the program",
        "it may run out of memory",
    ]


sizes = st.builds(
    lambda blocks, rest, scratch: PartSizes(sum(blocks) + rest, tuple(blocks), scratch),
    st.lists(st.integers(0, 50), max_size=8),
    st.integers(0, 100),
    st.integers(0, 20),
)
parts = st.builds(
    lambda role, plain, lowered, fallback, activations, loras, least: PartNeeds(
        ROLES[role], role, "none", {"none": plain, "qint8": lowered}, fallback, activations, loras, least
    ),
    st.sampled_from(sorted(ROLES)),
    sizes,
    sizes,
    st.sampled_from([None, "qint8"]),
    st.integers(0, 50),
    st.integers(0, 20),
    st.integers(0, 9),
)


@given(parts, st.integers(0, 500), st.integers(0, 100), st.integers(0, 500))
def test_no_plan_asks_for_more_than_there_is_and_more_memory_never_means_more_streaming(needs, room, more, main):
    def plan(room: int) -> Plan:
        return make_plan([needs], device(room), ram(main))

    (chosen,), (richer,), (whole,) = plan(room).parts, plan(room + more).parts, plan(10**9).parts
    (least,) = make_plan([replace(needs, least_streamed=99)], device(room), ram(main)).parts
    assert chosen.device <= max(room, least.device), "it fits where anything does"
    assert whole.streamed <= richer.streamed <= chosen.streamed <= least.streamed == chosen.blocks
    assert chosen.streamed >= min(needs.least_streamed, chosen.blocks)
    assert chosen.quantization == whole.quantization == needs.decide(ram(main)), "the device's memory changes no bit"
    assert chosen.quantization == "none" or needs.sizes["none"].weights > main


@pytest.mark.parametrize("quantization", ["none", "qfloat8", "qint8", "fp8_e4m3fn"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sizes_before_loading_are_those_of_the_loaded_parts(engine, checkpoint, quantization, dtype):
    handle = PipelineHandle("lumina2", checkpoint, dtype, RuntimeOptions(quantization, quantization))
    asked = wanted(engine, handle)
    planned = asked.plan
    for part, kind in asked.model.parts.items():
        with engine.on_device(asked, part, SilentObserver()) as module:
            assert planned.part(part).weights == held_bytes(module)
            assert planned.part(part).blocks == len(kind.blocks(kind.lora_root(module)))
            made_dense_for_a_use = quantization != "none" and part != "vae"
            assert (planned.part(part).beside > 1 << 30) == made_dense_for_a_use


def test_packed_weights_count_as_they_are_stored_and_are_never_quantised_by_a_default(
    engine, checkpoint, models, tmp_path, monkeypatch
):
    file = write_gguf(tmp_path / "tiny.gguf", models / "diffusers" / "tiny", "Q8_0")
    model = find_model("lumina2")
    parts = {source.component: source for source in checkpoint.sources}
    packed = Checkpoint.assemble("tiny.gguf", parts | open_single_file(file, file.name, model.files), model.files)
    handle = PipelineHandle("lumina2", packed)
    planned = wanted(engine, handle).plan.part("transformer")
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as module:
        assert planned.weights == held_bytes(module)
    assert planned.beside > 1 << 30, "room for a layer that is made dense"
    defaults = {"transformer": "qfloat8", "text_encoder": "qfloat8"}
    monkeypatch.setitem(catalogue(), "lumina2", replace(model, quantization=defaults))
    keys = wanted(engine, handle).keys
    assert [keys[part].quantization for part in ("transformer", "text_encoder", "vae")] == ["none", "qfloat8", "none"]


def test_the_limits_of_every_group_above_count(tmp_path):
    files = {
        "memory.max": "900", "job/memory.max": "max", "job/step/memory.max": "700", "other/memory.max": "1",
        "memory/memory.limit_in_bytes": "9223372036854771712", "memory/box/memory.limit_in_bytes": "600",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    groups = tmp_path / "cgroup"
    for text, limits in {
        "0::/job/step\n": [900, 700],
        "0::/\n": [900],
        "0::/gone/../job\n": [900],
        "9:cpu,cpuacct:/other\n4:memory:/box\n": [9223372036854771712, 600],
    }.items():
        groups.write_text(text)
        assert list(container_limits(groups, tmp_path)) == limits
    assert list(container_limits(tmp_path / "absent", tmp_path)) == []
    assert total_ram() > 1 << 30


# FLUX.2-dev as its help page describes it, from the shapes of its layers
def _flux2(quantized: bool) -> PartSizes:
    def held(*layers: tuple[int, int]) -> int:
        return sum(rows * columns + (rows + 2) * 2 if quantized else rows * columns * 2 for rows, columns in layers)

    h, wide = 6144, 18432
    double = held(*[(wide, h), (h, h), (2 * wide, h), (h, wide)] * 2)
    single = held((9 * h, h), (h, 4 * h))
    rest = held(
        (h, 128), (h, 15360), *[(h, 256), (h, h)] * 2, *[(6 * h, h)] * 2, (3 * h, h), (128, h), (2 * h, h)
    )  # fmt: skip
    blocks = (double,) * 8 + (single,) * 48
    return PartSizes(sum(blocks) + rest, blocks, 9 * h * h * 2 if quantized else 0)


def _mistral() -> PartSizes:
    h, layers = 5120, [(4096, 5120), (1024, 5120), (1024, 5120), (5120, 4096), *[(32768, 5120)] * 2, (5120, 32768)]
    layer = sum(rows * columns + (rows + 2) * 2 for rows, columns in layers) + 2 * h * 2
    return PartSizes(30 * layer + 131072 * h * 2, (layer,) * 30, 32768 * h * 2)


FLUX2 = (
    PartNeeds("text_encoder", "encoder", "qfloat8", {"qfloat8": _mistral()}, activations=GIB),
    PartNeeds(
        "transformer", "denoiser", "none", {"none": _flux2(False), "qfloat8": _flux2(True)}, "qfloat8",
        activations=2 * GIB,
    ),
    PartNeeds("vae", "autoencoder", "none", {"none": PartSizes(336_000_000)}, activations=2178 * 64 * 128 * 128 * 2),
)  # fmt: skip


def flux2(card: int, main: int) -> Plan:
    """On a card and with a memory sold as so many GB: 5 % of the card and 2.5 % of the memory are taken before us."""
    memory = DeviceMemory(card * GIB, card * GIB * 95 // 100)
    return make_plan(FLUX2, memory, main * GIB * 975 // 1000)


def flux2_row(card: int, main: int) -> str:
    plan = flux2(card, main)
    transformer, encoder = plan.part("transformer"), plan.part("text_encoder")
    held = f"{transformer.quantization}, {transformer.weights / 1e9:.1f} GB"
    streamed = [f"{part.streamed} of {part.blocks}" if part.streamed else "none" for part in (transformer, encoder)]
    turns = "they take turns" if plan.take_turns else "both stay"
    return f"| {card} GB | {main} GB | {held} | {streamed[0]} | {streamed[1]} | {turns} |"


def test_flux2_runs_on_a_24_gb_card_with_64_gb_of_memory():
    plan = flux2(24, 64)
    assert plan.part("transformer").quantization == "qfloat8"
    assert plan.memory is not None
    assert all(part.device <= plan.memory.usable for part in plan.parts)
    assert sum(part.weights for part in plan.parts) <= usable_ram(plan.ram)
    assert len(plan.notes) == 1


def test_the_page_of_memory_has_what_is_planned():
    page = (ROOT / "docs/memory.md").read_text("utf-8")
    shown = re.findall(r"^\| \d+ GB \|.*$", page, re.MULTILINE)
    assert shown == [flux2_row(card, main) for card in (24, 48, 80, 140) for main in (64, 128, 256)]


def test_two_denoisers_stay_together_where_they_fit_and_part_where_they_do_not():
    low = replace(TRANSFORMER, part="transformer_2")
    needs = [ENCODER, TRANSFORMER, low, VAE]
    together = make_plan(needs, None, ram(210))
    assert together.alternating == ("text_encoder", "transformer", "transformer_2")
    assert [plan.leaves_before for plan in together.parts] == [
        ("transformer", "transformer_2"), ("text_encoder",), ("text_encoder",), (),
    ]  # fmt: skip
    apart = make_plan(needs, None, ram(150))
    assert apart.part("transformer").leaves_before == ("text_encoder", "transformer_2")
    assert not make_plan(needs, None, ram(255)).take_turns
