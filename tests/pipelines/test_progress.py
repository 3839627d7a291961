"""How far a run is: bytes of a load, tensors of a merge; and interruption wherever it says so."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from comfyui_aitk.pipelines import amounts, observer
from comfyui_aitk.pipelines.files.header import FileStamp, TensorInfo
from comfyui_aitk.pipelines.files.spans import METER
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.observer import SILENT, SilentObserver
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample

REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1)


class Stop(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class Said(SilentObserver):
    """Keeps what it is told; interrupts at the n-th time."""

    def __init__(self, stop_at: int = 0) -> None:
        self.texts: list[str] = []
        self._stop_at = stop_at

    def stage(self, text: str) -> None:
        self.texts.append(text)
        if len(self.texts) == self._stop_at:
            raise Stop

    progress = stage


@pytest.fixture
def handle(checkpoint, models) -> PipelineHandle:
    path = models / "loras" / "tiny.safetensors"
    return PipelineHandle("lumina2", checkpoint).with_lora(LoraSpec(path.name, FileStamp.of(path), 0.8))


@pytest.fixture(autouse=True)
def say_all(monkeypatch):
    monkeypatch.setattr(observer, "_SHOW_EVERY", 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (999_960, "1.0 MB"), (3_249_000_000, "3.2 GB"),
     (112_960_000_000, "113 GB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_sizes_in_words(count, text):
    assert amounts.size(count) == text


def test_shares_and_durations_in_words():
    assert amounts.share(3.2e9, 12.4e9) == "3.2 of 12.4 GB"
    assert amounts.share(5, 4) == "4 of 4 bytes"
    found = [amounts.duration(seconds) for seconds in (0, 99.4, 100, 3570, 3900)]
    assert found == [
        "0 s",
        "99 s",
        "2 min",
        "1 h 0 min",
        "1 h 5 min",
    ]


@pytest.mark.parametrize(
    ("info", "size"),
    [
        (TensorInfo("BF16", (3, 5)), 30),
        (TensorInfo("F32", ()), 4),
        (TensorInfo("Q4_K", (2, 512)), 2 * 2 * 144),
        (TensorInfo("scaled F8_E4M3", (3, 5)), 15),
        (TensorInfo("nvfp4", (2, 32)), 32),
    ],
)
def test_bytes_of_a_stored_tensor(info, size):
    assert info.size == size


def test_a_load_says_how_many_bytes_of_what_it_reads(engine, checkpoint):
    said, before = Said(), METER.bytes
    sample(engine, PipelineHandle("lumina2", checkpoint), REQUEST, said)
    read = METER.bytes - before
    found = [re.fullmatch(r"loading (\w+) of .*: ([\d.]+) of ([\d.]+) (MB|KB)", text) for text in said.texts]
    found = [match for match in found if match is not None]
    assert list(dict.fromkeys(match[1] for match in found)) == ["text_encoder", "transformer", "vae"]
    totals = {match[1]: float(match[3]) * {"MB": 1e6, "KB": 1e3}[match[4]] for match in found}
    assert sum(totals.values()) == pytest.approx(read, rel=0.05)
    for part, total in totals.items():
        done = [float(match[2]) for match in found if match[1] == part]
        assert done == sorted(done)
        unit = {match[4] for match in found if match[1] == part}.pop()
        assert done[-1] * {"MB": 1e6, "KB": 1e3}[unit] > total / 2


def test_a_merge_says_how_many_tensors(engine, handle):
    said = Said()
    sample(engine, handle, REQUEST, said)
    name = handle.loras[0].name
    assert f"reading {name}" in said.texts
    found = [
        re.fullmatch(rf"merging {re.escape(name)} into transformer: (\d+) of (\d+) tensors", t) for t in said.texts
    ]
    counts = [(int(match[1]), int(match[2])) for match in found if match is not None]
    assert counts[0][0] == 0
    assert counts[-1][0] == counts[-1][1] - 1
    # and off again
    said = Said()
    sample(engine, replace(handle, loras=()), REQUEST, said)
    assert "applying no LoRA to transformer" in said.texts


def test_a_run_interrupted_wherever_it_says_something_is_made_good_by_the_next(engine, handle):
    expected = sample(engine, handle, REQUEST, SILENT)
    engine.release()
    said = Said()
    sample(engine, handle, REQUEST, said)
    kinds: dict[str, int] = {}
    for number, text in enumerate(said.texts, 1):
        # the first of each kind, and one in the middle of each load and merge
        kind = re.sub(r"[\d.]+", "0", text)
        kinds.setdefault(kind, number)
        kinds[f"{kind} again"] = number
    assert len(kinds) > 20
    for number in sorted(set(kinds.values())):
        engine.release()
        with pytest.raises(Stop):
            sample(engine, handle, REQUEST, Said(number))
        # from what is left of it
        assert torch.equal(sample(engine, handle, REQUEST, SILENT).images, expected.images), said.texts[number - 1]
