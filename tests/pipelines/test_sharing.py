"""What cannot be shared out over processes is refused while nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny import flux2, lumina2
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import wanted


class Several(PlainMachine):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def processes(self) -> int:
        return self.count


def handle(model: str, folder: Path) -> PipelineHandle:
    return PipelineHandle(model, Checkpoint.open(folder, "tiny", find_model(model).files))


def test_a_model_without_a_plan_is_refused(tmp_path):
    engine, tiny = Engine(Several(2)), handle("lumina2", lumina2.make_checkpoint(tmp_path / "tiny"))
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be rendered over 2 processes: its transformer states no plan"):
            wanted(engine, tiny)
    assert engine.counters.parts_loaded == 0


def test_heads_that_do_not_divide_are_refused(tmp_path):
    tiny = handle("flux2", flux2.make_checkpoint(tmp_path / "tiny"))
    engine = Engine(Several(3))
    with pytest.raises(InputError, match=r"over 3 processes: its \d attention heads do not divide by them"):
        wanted(engine, tiny)
    assert engine.counters.parts_loaded == 0
    assert wanted(Engine(Several(2)), tiny).keys.keys() >= {"transformer"}
