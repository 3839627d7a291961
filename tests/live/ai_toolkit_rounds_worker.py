"""Renders the preview rounds of one training process with AI Toolkit's own code, into the job's folder.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_rounds_worker.py JOB.json

The network's weights are another file's in each round, as training would have changed them; the base's weights are
what AI Toolkit leaves of them. Pictures are saved by AI Toolkit under its own names.

JOB.json holds the keys that ``ai_toolkit_common`` tells of a model, and
    worker   the module that loads the model, e.g. "ai_toolkit_worker"
    options  of AI Toolkit's generate_images
    samples  the folder of the pictures
    rounds   in order: step, lora (the file), items
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from ai_toolkit_common import add_network, prepare, settle


def main(job_path: str) -> None:
    prepare()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    from toolkit.config_modules import GenerateImageConfig

    sd = importlib.import_module(job["worker"]).load_model(job)
    settle(sd, job)
    add_network(sd, job["rounds"][0]["lora"])
    for one in job["rounds"]:
        sd.network.load_weights(one["lora"])
        # BaseSDTrainProcess.py sample: the file's name, and the keys of a sample
        name = f"[time]__{one['step']:09}_[count].png"
        configs = [
            GenerateImageConfig(
                prompt=item["prompt"],
                negative_prompt=item["neg"],
                width=item["width"],
                height=item["height"],
                seed=item["seed"],
                num_inference_steps=item["sample_steps"],
                guidance_scale=item["guidance_scale"],
                network_multiplier=item["network_multiplier"],
                output_path=str(Path(job["samples"], name)),
                output_ext="png",
            )
            for item in one["items"]
        ]
        sd.generate_images(configs, **job["options"])


if __name__ == "__main__":
    main(sys.argv[1])
