"""Prints what a process keeps of a model of 100 MB after a merge and after a release, as shares of its weights.

A process of its own: what another test left behind would be reused.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
importlib.import_module("tasks").load_pack()

import psutil  # noqa: E402
from comfyui_aitk.pipelines.engine.engine import Engine  # noqa: E402
from comfyui_aitk.pipelines.files.header import FileStamp  # noqa: E402
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle  # noqa: E402
from comfyui_aitk.pipelines.machine.machine import PlainMachine  # noqa: E402
from comfyui_aitk.pipelines.machine.plan import usable_ram  # noqa: E402
from comfyui_aitk.pipelines.models import find_model  # noqa: E402
from comfyui_aitk.pipelines.observer import SilentObserver  # noqa: E402
from comfyui_aitk.pipelines.run.request import SampleRequest  # noqa: E402
from comfyui_aitk.pipelines.run.sample import sample  # noqa: E402
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint  # noqa: E402


def resident() -> int:
    return psutil.Process().memory_info().rss


def main(folder: Path) -> None:
    """Of a folder that holds the checkpoints ``tiny`` and ``model``, and a LoRA for the latter."""
    model, path = find_model("lumina2"), folder / "lora.safetensors"
    request = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)
    # no more than the weights need: the merged tensors' originals are kept where there is room for them
    weights = sum(file.stat().st_size for file in (folder / "model").rglob("*.safetensors"))
    total = next(size for size in range(4 << 30, 1 << 40, 1 << 20) if usable_ram(size) >= weights)
    engine = Engine(PlainMachine(total=total))

    def run(name: str, *loras: LoraSpec) -> int:
        handle = PipelineHandle(model.id, Checkpoint.open(folder / name, name, model.files), "bfloat16", loras=loras)
        sample(engine, handle, request, SilentObserver())
        return resident()

    # the libraries are there after it
    run("tiny")
    engine.release()
    before = resident()
    loaded = run("model")
    stamp = FileStamp.of(path)
    merged = [run("model", LoraSpec(path.name, stamp, strength, "merged")) for strength in (0.8, -0.5, 1)]
    engine.release()
    kept = {"loaded": loaded - before, "merged": max(merged) - before, "released": resident() - before}
    sys.stdout.write(json.dumps({name: value / weights for name, value in kept.items()}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
