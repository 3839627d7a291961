"""What AI Toolkit's own parser makes of configs: the settings of each picture of a round, or its exception.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_parser_worker.py CONFIGS.json OUT.json

CONFIGS.json holds a list of texts, each a job's whole config in YAML. OUT.json holds for each ``{"error": type,
"stage": "config" or "sample"}``, or ``{"items": [...], "sampler": ...}`` with the items' values as ``[type, value]``.
The config is read by ``get_config``, its section by ``SampleConfig``, and the round begun by the trainer's own
``sample``, whose object is given no model: what it would generate is kept.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ai_toolkit_common import prepare

SETTINGS = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "width": "width", "height": "height",
    "steps": "num_inference_steps", "guidance_scale": "guidance_scale", "seed": "seed",
    "multiplier": "network_multiplier", "num_frames": "num_frames", "ctrl_img": "ctrl_img",
    "ctrl_img_1": "ctrl_img_1", "ctrl_img_2": "ctrl_img_2", "ctrl_img_3": "ctrl_img_3",
}  # fmt: skip


def told(value: Any) -> list[Any]:
    odd = isinstance(value, float) and not math.isfinite(value)
    name = "dict" if isinstance(value, dict) else type(value).__name__  # an OrderedDict
    return [name, str(value) if odd else value]


def main() -> None:
    prepare()
    from jobs.process.BaseSDTrainProcess import BaseSDTrainProcess
    from toolkit.config import get_config
    from toolkit.config_modules import SampleConfig
    from toolkit.prompt_utils import inject_trigger_into_prompt

    def begun(process: dict, section: Any) -> list[Any]:
        kept: list[Any] = []
        model = SimpleNamespace(
            inject_trigger_into_prompt=inject_trigger_into_prompt,
            generate_images=lambda items, sampler: kept.extend(items),
        )
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(is_main_process=True), save_root="job", sample_config=section,
            first_sample_config=section, adapter_config=None, embedding=None, adapter=None, ema=None, logger=None,
            trigger_word=process.get("trigger_word"), sd=model,
            post_process_generate_image_config_list=lambda items: items,
        )  # fmt: skip
        BaseSDTrainProcess.sample(trainer, step=250)
        return [{name: told(getattr(item, theirs)) for name, theirs in SETTINGS.items()} for item in kept]

    def parsed(text: str, path: Path) -> dict[str, Any]:
        path.write_text(text, "utf-8")
        stage = "config"
        try:
            process = get_config(str(path))["config"]["process"][0]
            given = process.get("sample")
            section = SampleConfig(**({} if given is None else given))
            stage = "sample"
            return {"items": begun(process, section), "sampler": told(section.sampler), "format": told(section.ext)}
        except Exception as error:
            return {"error": type(error).__name__, "stage": stage}

    # it collects garbage among all of torch's objects, twice a round
    sys.modules[BaseSDTrainProcess.__module__].flush = lambda: None
    texts = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder, patch("random.randint", lambda low, high: "random"):
        found = [parsed(text, Path(folder, "job.yaml")) for text in texts]
    Path(sys.argv[2]).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
