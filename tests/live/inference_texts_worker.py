"""Encodes texts with control images by ai-toolkit-inference's own code, as the reference of a side-by-side test.

    PYTHONPATH=<its checkout>:<AI Toolkit's> <its python> inference_texts_worker.py JOB.json OUT.safetensors

JOB.json: ``model``, "qwen_image_edit" or "qwen_image_edit_plus"; ``checkpoint``, a diffusers folder; ``dtype``,
"float32" or "bf16"; ``items``, each with ``prompt``, ``negative_prompt`` and ``control``, picture files.

OUT.safetensors, for item i: `item{i}.prompt_embeds` and `item{i}.negative_embeds`, [1, length, D].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ai_toolkit_common import prepare


def main(job_path: str, out_path: str) -> None:
    prepare()
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from src.pipelines import qwen_image

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    one = job["model"] == "qwen_image_edit"
    kind = qwen_image.QwenImageEditPipeline if one else qwen_image.QwenImageEditPlus2509Pipeline
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    server: Any = kind(device="cpu", offload_mode="none")
    # on a CPU it would be float32
    server.dtype = dtype
    with patch.object(kind.CONFIG, "base_model", job["checkpoint"]):
        server.load([])
    tensors = {}
    for index, item in enumerate(job["items"]):
        pictures = [Image.open(path).convert("RGB") for path in item["control"]]
        seen = [server._preprocess_ctrl_for_encode(picture, "cpu", dtype) for picture in pictures]
        for name, text in (("prompt", item["prompt"]), ("negative", item["negative_prompt"])):
            with torch.no_grad():
                embeds, _ = server.pipe.encode_prompt(text, image=seen[0] if one else seen, device="cpu")
            tensors[f"item{index}.{name}_embeds"] = embeds.contiguous()
    save_file(tensors, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
