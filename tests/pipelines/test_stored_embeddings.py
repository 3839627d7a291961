"""Embeddings on the disk: equal to the bit, found again only where nothing that decides them changed, and never in the
way of a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, lumina2, omnigen2, z_image
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.pipelines.engine import embedding_identity, file_digests, stored_embeddings
from comfyui_aitk.pipelines.engine.embeddings import EmbeddingKey
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.engine.file_digests import FileDigests
from comfyui_aitk.pipelines.engine.stored_embeddings import StoredEmbeddings
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import Lease, LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.parts.encoder import Embedding, Text
from comfyui_aitk.pipelines.parts.language_model.gemma2 import Gemma2Settings
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.run import Progress, prepare
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rendering import leases_ended, noise_image, wanted
from safetensors.torch import load_file, save, save_file

PROMPT = "a very private fox"
REQUEST = SampleRequest("trainer preview", PROMPT, "fog", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "lumina2": lumina2.make_checkpoint,
    "flux2": flux2.make_checkpoint,
    "flux2_klein_4b": lambda folder: flux2.make_checkpoint(folder, "flux2_klein_4b"),
    "omnigen2": omnigen2.make_checkpoint,
    "zimage": z_image.make_checkpoint,
}


def engine_on(folder: Path | None) -> Engine:
    """An engine that knows what is in the folder and nothing else, as after a restart."""
    return Engine(PlainMachine(), lambda: folder)


def run(engine: Engine, handle: PipelineHandle, **change: object) -> SampleResult:
    return sample(engine, handle, replace(REQUEST, **change), SilentObserver())


def texts_of(result: SampleResult) -> tuple[int, int]:
    """How many were encoded, and how many came from the disk."""
    return result.report["work"]["texts_encoded"], result.report["work"]["texts_from_disk"]


@dataclass(frozen=True)
class Found:
    """What the texts of a run came to, without the picture.

    Attributes:
        texts: how many were encoded, and how many came from the disk.
        embeddings: of all.
    """

    texts: tuple[int, int]
    embeddings: list[Embedding]

    def equals(self, other: Found) -> bool:
        return all(map(same, self.embeddings, other.embeddings))


def encode(engine: Engine, handle: PipelineHandle, **change: object) -> Found:
    own, _ = prepare(engine, handle, replace(REQUEST, **change), SilentObserver(), Progress(engine.counters))
    before = replace(engine.counters)
    with torch.no_grad():
        embeddings = engine.embeddings(own.wanted, own.wanted.model.texts(own.job), SilentObserver())
    after = engine.counters
    encoded, stored = after.texts_encoded - before.texts_encoded, after.texts_from_disk - before.texts_from_disk
    return Found((encoded, stored), embeddings)


def same(one: Embedding, other: Embedding) -> bool:
    """Equal in every bit; NaN too."""

    def raw(value: Embedding) -> list:
        tensors = [value.embeds, value.mask, *([] if value.pooled is None else [value.pooled])]
        return [(own.dtype, own.shape, own.view(torch.uint8).tolist()) for own in tensors]

    return raw(one) == raw(other) and one.cut_tokens == other.cut_tokens


def opened(folder: Path, model: str = "lumina2") -> PipelineHandle:
    return PipelineHandle(model, Checkpoint.open(folder, folder.name, find_model(model).files))


def embeddings_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where embeddings are kept; it is not there yet."""
    return tmp_path / "user" / "embeddings"


@pytest.fixture
def handle(checkpoint) -> PipelineHandle:
    return PipelineHandle("lumina2", checkpoint)


@pytest.fixture
def own(tmp_path: Path, models: Path) -> Path:
    """A checkpoint that a test may change."""
    return shutil.copytree(models / "diffusers" / "tiny", tmp_path / "own")


# ---- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MAKERS)
def test_after_a_restart_a_known_text_needs_no_text_encoder(folder, tmp_path, model):
    handle = opened(MAKERS[model](tmp_path / "tiny"), model)
    first = run(engine_on(folder), handle)
    count = len(embeddings_in(folder))
    assert texts_of(first) == (count, 0)
    assert count == (1 if model == "flux2" else 2)
    again = engine_on(folder)
    second = run(again, handle)
    assert texts_of(second) == (0, count)
    assert again.resident == {"transformer", "vae"}
    assert torch.equal(second.images, first.images)
    assert torch.equal(second.latent, first.latent)
    assert texts_of(run(again, handle, seed=2)) == (0, 0), "from memory now"
    # one text is new
    assert texts_of(run(again, handle, prompt="a dog")) == (1, 0)


def test_what_comes_back_is_equal_in_every_bit(folder, handle):
    def embeddings(engine: Engine, dtype: str) -> list[Embedding]:
        texts = [Text("a fox " * 20, 8, Gemma2Settings()), Text("", 8, Gemma2Settings())]
        with torch.no_grad():
            return engine.embeddings(wanted(engine, replace(handle, dtype=dtype)), texts, SilentObserver())

    for dtype in ("float32", "bfloat16", "float16"):
        encoded, stored = (embeddings(engine_on(folder), dtype) for _ in range(2))
        for one, other in zip(encoded, stored, strict=True):
            assert one.embeds.dtype == other.embeds.dtype
            assert torch.equal(one.embeds.view(torch.uint8), other.embeds.view(torch.uint8))
            assert torch.equal(one.mask, other.mask)
            assert one.cut_tokens == other.cut_tokens
        assert encoded[0].cut_tokens > 0


def test_the_prompt_is_neither_in_a_file_nor_in_a_name(folder, handle):
    encode(engine_on(folder), handle, prompt=PROMPT, negative_prompt="secret haze")
    for path in folder.iterdir():
        for word in (b"private", b"secret", b"haze", b"fox", b"tiny", str(handle.checkpoint.files[0].path).encode()):
            assert word not in path.read_bytes()
            assert word.decode() not in path.name
        assert len(path.stem) == 64


def test_without_a_folder_nothing_is_kept(tmp_path, handle):
    assert encode(engine_on(None), handle).texts == (2, 0)
    assert encode(engine_on(None), handle).texts == (2, 0)


def test_switched_off_it_neither_reads_nor_writes_and_reloads_nothing(folder, handle):
    off = replace(handle, options=RuntimeOptions(embeddings_on_disk=False))
    assert off == handle
    assert hash(off) == hash(handle)
    assert texts_of(run(engine_on(folder), off)) == (2, 0)
    assert not folder.exists()
    run(engine_on(folder), handle)
    assert texts_of(run(engine_on(folder), off)) == (2, 0)
    engine = engine_on(folder)
    run(engine, handle)
    work = run(engine, off).report["work"]
    assert work == dict.fromkeys(work, 0)


def test_giving_memory_back_leaves_the_disk(folder, handle):
    engine = engine_on(folder)
    encode(engine, handle)
    engine.release()
    assert encode(engine, handle).texts == (0, 2)
    engine.leases.grace = 0
    lease = Lease()
    encode(engine, replace(handle, lease=lease))
    del lease
    leases_ended()
    assert encode(engine, handle).texts == (0, 2), "the last lease ended"


# ---- what decides it ------------------------------------------------------------------------------------------------


def test_files_that_moved_are_the_same(folder, own, tmp_path):
    first = encode(engine_on(folder), opened(own))
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    own.rename(moved)
    for path in moved.rglob("*"):
        os.utime(path, ns=(0, 10**9))
    second = encode(engine_on(folder), opened(moved))
    assert second.texts == (0, 2)
    assert second.equals(first)


def _one_value(folder: Path) -> None:
    """In the middle of the largest tensor, with the file's size and time as they were."""
    path = folder / "text_encoder" / "model.safetensors"
    before, tensors = path.stat(), load_file(path)
    embedding = next(value for name, value in tensors.items() if "embed_tokens" in name)
    embedding.view(-1)[embedding.numel() // 2 + 7] += 1
    save_file(tensors, path, {"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _configuration(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-5}))


def _tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_eos_token": True}))


@pytest.mark.parametrize("change", [_one_value, _configuration, _tokenizer])
def test_other_files_are_other_embeddings(folder, own, change):
    encode(engine_on(folder), opened(own))
    change(own)
    assert encode(engine_on(folder), opened(own)).texts == (2, 0)


def test_another_transformer_or_vae_changes_no_embedding(folder, own, tmp_path):
    encode(engine_on(folder), opened(own))
    other = lumina2.make_checkpoint(tmp_path / "other", seed=9)
    for part in ("transformer", "vae"):
        shutil.rmtree(own / part)
        shutil.copytree(other / part, own / part)
    assert encode(engine_on(folder), opened(own)).texts == (0, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"options": RuntimeOptions(text_encoder_quantization="qfloat8")},
        {"options": RuntimeOptions(text_encoder_quantization="qint8")},
        {"options": RuntimeOptions(own=Chosen.of({"text_encoder_attention": "softcap"}))},
    ],
    ids=str,
)
def test_how_the_encoder_is_held_and_run_counts(folder, handle, change):
    encode(engine_on(folder), handle)
    expected = encode(engine_on(None), replace(handle, **change))
    found = [encode(engine_on(folder), replace(handle, **change)) for _ in range(2)]
    assert [result.texts for result in found] == [(2, 0), (0, 2)]
    assert all(result.equals(expected) for result in found)
    # of the transformer it does not
    assert encode(engine_on(folder), replace(handle, options=RuntimeOptions("qint8"))).texts == (0, 2)


def test_loras_on_the_encoder_count_by_what_they_hold(folder, handle, models, tmp_path):
    tiny = models / "diffusers" / "tiny"
    path = write_kohya(tmp_path / "lora.safetensors", tiny, text_encoder=True, size=0.1)

    def spec(path: Path, strength: float = 1.0, application: str = "auto") -> LoraSpec:
        file = open_lora(path, path.name, find_model("lumina2"), handle.checkpoint)
        own = (file.title, file.mergeable, file.parts)
        return LoraSpec(path.name, FileStamp.of(path), strength, application, *own)

    def found(*loras: LoraSpec) -> tuple[int, int]:
        result = encode(engine_on(folder), replace(handle, loras=loras))
        expected = encode(engine_on(None), replace(handle, loras=loras))
        assert result.equals(expected)
        return result.texts

    assert found(spec(path)) == (2, 0)
    assert found(spec(path)) == (0, 2)
    assert found() == (2, 0), "without it"
    assert found(spec(path, 0.5)) == (2, 0)
    assert found(spec(path, 1.0, "live")) == (2, 0)
    copy = Path(shutil.copy(path, tmp_path / "another name.safetensors"))
    assert found(spec(copy)) == (0, 2)
    tensors = {name: value * 2 if "te_" in name and "up" in name else value for name, value in load_file(copy).items()}
    save_file(tensors, copy)
    assert found(spec(copy)) == (2, 0)
    assert found(spec(path), spec(copy)) == (2, 0)
    assert found(spec(copy), spec(path)) == (2, 0), "the order counts"
    # of the transformer alone
    alone = models / "loras" / "tiny.safetensors"
    assert found(spec(alone)) == (0, 2)


def test_a_lora_that_was_replaced_is_not_answered_from_the_disk(folder, handle, models, tmp_path):
    path = write_kohya(tmp_path / "lora.safetensors", models / "diffusers" / "tiny", text_encoder=True, size=0.1)
    file = open_lora(path, path.name, find_model("lumina2"), handle.checkpoint)
    spec = LoraSpec(path.name, FileStamp.of(path), 1.0, "auto", file.title, file.mergeable, file.parts)
    encode(engine_on(folder), replace(handle, loras=(spec,)))
    os.utime(path, ns=(0, 10**9))
    with pytest.raises(FileError, match=r"'lora\.safetensors' was replaced after its node ran"):
        encode(engine_on(folder), replace(handle, loras=(spec,)))


def _with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)


def _with_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")


def _with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")


def _with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict(embedding_identity._versions()) | {"transformers": "99.0"}
    monkeypatch.setattr(embedding_identity, "_versions", lambda: own)


def _with_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_identity, "_code", lambda: "another")


def _with_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_identity, "_processor", lambda: ["model name: another"])


@pytest.mark.parametrize(
    "other", [_with_threads, _with_capability, _with_kernels, _with_library, _with_code, _with_processor]
)
def test_another_machine_encodes_for_itself(folder, handle, monkeypatch, other):
    encode(engine_on(folder), handle)
    with monkeypatch.context() as patch:
        other(patch)
        assert encode(engine_on(folder), handle).texts == (2, 0)
        assert encode(engine_on(folder), handle).texts == (0, 2)
    assert encode(engine_on(folder), handle).texts == (0, 2)


def test_of_a_gpu_its_name_and_torch_s_switches_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    first = embedding_identity.canonical(embedding_identity.machine_of("cuda:0"))
    assert embedding_identity.canonical(embedding_identity.machine_of("cuda:1")) == first
    assert embedding_identity.canonical(embedding_identity.machine_of("cpu")) != first
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
        assert embedding_identity.canonical(embedding_identity.machine_of("cuda:0")) != first
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another card")
    assert embedding_identity.canonical(embedding_identity.machine_of("cuda:0")) != first


def test_every_field_of_a_text_counts(engine, handle):
    part = wanted(engine, handle).keys["text_encoder"]
    picture, other = (Picture.of(noise_image(8, 8, seed)) for seed in (0, 1))
    plain = Text("a", 8, (1, None), pictures=(picture,))
    texts = [
        plain, replace(plain, text="b"), replace(plain, length=9), replace(plain, settings=(1, 0)),
        replace(plain, settings=(1.0, None)), replace(plain, settings=("1", None)), replace(plain, encoder="second"),
        replace(plain, pictures=(other,)), replace(plain, pictures=()), replace(plain, pictures=(picture, picture)),
    ]  # fmt: skip
    names = [embedding_identity.identity((part, (), text, "cpu"), {}, lambda stamp: "0") for text in texts]
    assert len(set(names)) == len(texts)
    again = replace(plain, pictures=(Picture.of(noise_image(8, 8, 0)),))
    assert embedding_identity.identity((part, (), again, "cpu"), {}, lambda stamp: "0") == names[0]


def test_settings_without_a_plain_form_are_not_kept(folder, engine, handle):
    store = StoredEmbeddings(lambda: folder)
    key = (wanted(engine, handle).keys["text_encoder"], (), Text("a", 8, object()), "cpu")
    assert store.find([key]) == {}
    store.keep(key, EMBEDDING)
    assert not embeddings_in(folder)


def test_a_file_is_read_whole_once_whatever_the_process(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(1000))
    reads: list[FileStamp] = []
    read = file_digests._read
    monkeypatch.setattr(file_digests, "_read", lambda stamp: reads.append(stamp) or read(stamp))
    folder = tmp_path / "kept"
    folder.mkdir()

    def digest() -> str:
        return FileDigests(lambda: folder).of(FileStamp.of(path))

    first = digest()
    assert digest() == first
    assert len(reads) == 1
    (kept,) = folder.iterdir()
    for damaged in (b"", b"x" * 64, first[:-1].encode(), first.upper().encode(), b"\xff" * 64):
        kept.write_bytes(damaged)
        assert digest() == first
    path.write_bytes(os.urandom(1000))
    assert digest() != first
    with pytest.raises(FileError, match="was replaced"):
        FileDigests(lambda: folder).of(replace(FileStamp.of(path), size=1))


def test_a_digest_that_was_deleted_is_kept_again_and_one_that_is_used_stays(tmp_path):
    path, folder = tmp_path / "weights.safetensors", tmp_path / "kept"
    path.write_bytes(b"x")
    digests, stamp = FileDigests(lambda: folder), FileStamp.of(path)
    found = digests.of(stamp)
    (kept,) = folder.iterdir()
    os.utime(kept, ns=(0, 0))
    digests.of(stamp)
    assert kept.stat().st_mtime > 0
    kept.unlink()
    digests.of(stamp)
    assert kept.read_text() == found


# ---- files that take long to read whole -----------------------------------------------------------------------------


def finished() -> None:
    """Waits until what was kept is on the disk."""
    for thread in threading.enumerate():
        if thread.name == "AITK reading of text encoders":
            thread.join(60)


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, str]]:
    """Which large files are read whole, and in which thread; here every weight file is large."""
    found, read = [], file_digests._read

    def noted(stamp: FileStamp) -> str:
        if stamp.path.suffix == ".safetensors":
            found.append((stamp.path.name, threading.current_thread().name))
        return read(stamp)

    monkeypatch.setattr(file_digests, "_read", noted)
    monkeypatch.setattr(stored_embeddings, "LARGE", 10**5)
    return found


def test_a_large_text_encoder_is_read_whole_once_and_behind_the_first_picture(folder, handle, reads, monkeypatch):
    held, released = file_digests._read, threading.Event()

    def late(stamp: FileStamp) -> str:
        assert stamp.size < 10**5 or released.wait(60)
        return held(stamp)

    monkeypatch.setattr(file_digests, "_read", late)
    engine = engine_on(folder)
    first = run(engine, handle)
    assert texts_of(first) == (2, 0)
    assert not embeddings_in(folder), "the picture is out, and nothing was read for it"
    # another run does not wait, and reads nothing a second time
    assert texts_of(run(engine, handle, prompt="a dog")) == (1, 0)
    released.set()
    finished()
    assert reads == [("model.safetensors", "AITK reading of text encoders")]
    assert len(embeddings_in(folder)) == 3
    again = run(engine_on(folder), handle)
    assert texts_of(again) == (0, 2)
    assert torch.equal(again.images, first.images)
    # known now: what is new is written at once
    assert texts_of(run(engine_on(folder), handle, prompt="a cat")) == (1, 1)
    assert len(embeddings_in(folder)) == 4
    assert len(reads) == 1


def test_what_is_written_later_is_named_by_what_it_was_encoded_with(folder, handle, reads, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        engine = engine_on(folder)
        encode(engine, handle)
    engine.stored.finish()
    finished()
    assert len(embeddings_in(folder)) == 2
    assert encode(engine_on(folder), handle).texts == (2, 0)


def test_a_large_file_that_was_replaced_behind_the_run_keeps_nothing(folder, own, reads):
    engine = engine_on(folder)
    encode(engine, opened(own))
    os.utime(own / "text_encoder" / "model.safetensors", ns=(0, 10**9))
    engine.stored.finish()
    finished()
    assert not embeddings_in(folder)


def test_trouble_behind_a_run_is_said_by_the_next(folder, handle, reads):
    engine = engine_on(folder)
    folder.parent.mkdir()
    folder.write_text("a file")
    assert not any("was not kept on the disk" in note for note in run(engine, handle).notes)
    finished()
    assert any("was not kept on the disk: " in note for note in run(engine, handle).notes)
    assert not any("was not kept on the disk: " in note for note in run(engine, handle).notes)


# ---- what may happen to the folder ----------------------------------------------------------------------------------

EMBEDDING = Embedding(
    torch.tensor([[[float("nan"), -0.0], [1e-40, 2.5]]]), torch.tensor([[1, 0]]), 3, torch.tensor([[1.0, 2.0]]).half()
)
WHOLE = stored_embeddings._written(EMBEDDING)


def test_a_file_gives_back_every_bit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(WHOLE)
    os.utime(path, ns=(0, 0))
    found = stored_embeddings._read(path, "float32")
    assert found is not None
    assert same(found, EMBEDDING)
    assert path.stat().st_mtime > 0, "it was used now"
    # a run in another dtype has another name; whoever renames a file gains nothing
    assert stored_embeddings._read(path, "bfloat16") is None
    assert not path.exists()


def _never_wrong(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found = stored_embeddings._read(path, "float32")
    assert found is None or same(found, EMBEDDING)
    assert path.exists() is (found is not None), "what is damaged is gone"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(WHOLE) - 1), bits=st.integers(1, 255))
def test_a_changed_byte_gives_no_other_embedding(tmp_path, place, bits):
    changed = bytearray(WHOLE)
    changed[place] ^= bits
    _never_wrong(tmp_path / "x", bytes(changed))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(WHOLE) - 1), rest=st.binary(max_size=50))
def test_a_file_that_was_cut_or_goes_on_otherwise_is_removed(tmp_path, length, rest):
    if WHOLE[length:] != rest:
        _never_wrong(tmp_path / "x", WHOLE[:length] + rest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.sampled_from(["embeds", "mask", "pooled", "other"]),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=4),
            st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]),
        ),
    ),
    metadata=st.dictionaries(st.sampled_from(["cut_tokens", "sha256", "schema"]), st.text(max_size=5)),
)
def test_another_safetensors_file_is_removed(tmp_path, tensors, metadata):
    made = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
    path = tmp_path / "x"
    path.write_bytes(save(made, metadata or None))
    assert stored_embeddings._read(path, "float32") is None
    assert not path.exists()


def test_a_file_larger_than_all_may_be_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(WHOLE)
    monkeypatch.setattr(stored_embeddings, "read_tensors", lambda path: pytest.fail("it was read"))
    assert stored_embeddings._read(path, "float32", len(WHOLE) - 1) is None
    assert not path.exists()


def test_a_damaged_file_is_replaced_by_the_run_that_meets_it(folder, handle):
    expected = encode(engine_on(folder), handle)
    damaged, whole = embeddings_in(folder)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = encode(engine_on(folder), handle)
    assert again.texts == (1, 1)
    assert again.equals(expected)
    assert embeddings_in(folder) == [damaged, whole]
    assert encode(engine_on(folder), handle).texts == (0, 2)


def test_what_is_no_file_is_left_alone_and_in_nobody_s_way(folder, handle, tmp_path):
    expected = encode(engine_on(folder), handle)
    one, other = embeddings_in(folder)
    one.unlink()
    one.mkdir()
    elsewhere = tmp_path / "elsewhere"
    other.rename(elsewhere)
    other.symlink_to(elsewhere)
    again = encode(engine_on(folder), handle)
    assert again.texts == (2, 0)
    assert again.equals(expected)
    assert one.is_dir()
    assert not other.is_symlink(), "a link is replaced, and what it leads to stays"
    assert elsewhere.exists()
    if hasattr(os, "mkfifo"):
        other.unlink()
        os.mkfifo(other)
        assert encode(engine_on(folder), handle).texts == (2, 0)


def test_the_longest_unused_leave_and_files_of_others_stay(folder, engine, handle):
    part = wanted(engine, replace(handle, dtype="float32")).keys["text_encoder"]
    store = StoredEmbeddings(lambda: folder, most_bytes=int(3.5 * len(WHOLE)))
    keys = [(part, (), Text(str(number), 8, None), "cpu") for number in range(6)]
    folder.mkdir(parents=True)
    stranger = folder / "mine.safetensors"
    stranger.write_bytes(bytes(10 * len(WHOLE)))

    def there() -> list[int]:
        return [number for number, name in enumerate(names) if (folder / name).exists()]

    def find(*some: EmbeddingKey) -> dict[EmbeddingKey, Embedding]:
        found = store.find(some)
        # digests of the encoder's files are small and leave, too
        for path in folder.glob("*.sha256"):
            path.unlink()
        return found

    find(*keys)
    names = [store._names[key] for key in keys]
    for number, key in enumerate(keys[:3]):
        store.keep(key, EMBEDDING)
        os.utime(folder / names[number], ns=(number, number))
    assert there() == [0, 1, 2]
    assert find(keys[0]), "used again"
    find(*keys)
    for number in (1, 2):
        os.utime(folder / names[number], ns=(number, number))
    store.keep(keys[3], EMBEDDING)
    assert there() == [0, 2, 3]
    store.keep(keys[4], EMBEDDING)
    assert there() == [0, 3, 4]
    assert stranger.exists()
    small = StoredEmbeddings(lambda: folder, most_bytes=len(WHOLE) - 1)
    small.find([keys[5]])
    small.keep(keys[5], EMBEDDING)
    assert there() == [0, 3, 4], "what is too large alone drives nothing out"
    assert small.take_trouble() == ""


def test_leftovers_of_killed_programs_are_removed(folder, handle):
    encode(engine_on(folder), handle)
    left = folder / f".{'a' * 32}.part"
    left.write_bytes(b"x")
    os.utime(left, ns=(0, 0))
    encode(engine_on(folder), handle, prompt="a dog")
    assert not left.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_a_note(folder, handle, monkeypatch, code):
    from comfyui_aitk.pipelines.pictures import saving

    expected = run(engine_on(None), handle)
    engine = engine_on(folder)

    def fail(number: int) -> None:
        raise OSError(code, os.strerror(code), "/home/somebody/secret")

    with monkeypatch.context() as patch:
        patch.setattr(saving.os, "fsync", fail)
        result = run(engine, handle)
    assert torch.equal(result.images, expected.images)
    note = f"the prompt's embedding was not kept on the disk: {os.strerror(code)}. The picture is the same"
    assert result.notes == (*expected.notes, note)
    assert result.report["notes"] == list(result.notes)
    assert not list(folder.iterdir()), "nothing is left of it"
    assert run(engine, handle).notes == expected.notes, "said once"


def test_a_folder_that_cannot_be_made_is_a_note(tmp_path, handle):
    (tmp_path / "user").write_text("a file")
    result = run(engine_on(tmp_path / "user" / "embeddings"), handle)
    assert "the prompt's embedding was not kept on the disk: Not a directory. The picture is the same" in result.notes


def test_engines_that_share_a_folder_give_their_own_embeddings(folder, handle):
    """As processes do: nothing but the folder is shared."""
    prompts = ["a fox", "a dog", "a cat"]
    expected = [encode(engine_on(None), handle, prompt=prompt) for prompt in prompts]
    failures: list[BaseException] = []

    def work(order: list[int]) -> None:
        try:
            for _ in range(2):
                engine = engine_on(folder)
                for number in order:
                    assert encode(engine, handle, prompt=prompts[number]).equals(expected[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2], [2, 1, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(embeddings_in(folder)) == 4
    assert not list(folder.glob("*.part"))


def test_a_folder_that_is_emptied_meanwhile_is_filled_again(folder, handle):
    engine = engine_on(folder)
    encode(engine, handle)
    shutil.rmtree(folder)
    encode(engine, handle, prompt="a dog")
    assert len(embeddings_in(folder)) == 1
