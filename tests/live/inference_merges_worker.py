"""Merges a LoRA with ai-toolkit-inference's own code, as the reference of a side-by-side test.

    PYTHONPATH=<its checkout>:<AI Toolkit's> <its python> inference_merges_worker.py JOB.json OUT.safetensors

JOB.json: ``model``, this pack's name of it; ``checkpoint``; ``dtype``, "float32" or "bf16"; ``lora``; ``strengths``,
for each of which the model is loaded anew, as by the first request to the server. Of Qwen-Image the server loads the
whole pipeline; of the other models it calls AI Toolkit's classes with the sizes of the released ones in its code, so
that here the loading is the other scripts'.

OUT.safetensors, for strength i: `merged{i}.` + the name of each of the transformer's tensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ai_toolkit_flux2_worker
import ai_toolkit_krea2_worker
import omnigen2_worker
from ai_toolkit_common import Job, prepare


def merged(job: Job, strength: float) -> Any:
    """The server's transformer with the LoRA in it."""
    import torch

    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    if job["model"].startswith("qwen_image"):
        return _fused(job, strength, dtype)
    with tempfile.TemporaryDirectory() as scratch:
        if job["model"] == "omnigen2":
            from src.pipelines.omnigen2 import OmniGen2Pipeline

            server: Any = OmniGen2Pipeline(device="cpu", offload_mode="none")
            server.transformer = omnigen2_worker.load_model(job).unet
            server._load_lora([job["lora"]], strength)
            return server.transformer
        if job["model"] == "krea2":
            from src.pipelines.krea2 import Krea2Pipeline

            server, network = Krea2Pipeline(device="cpu"), ai_toolkit_krea2_worker.load_model(job, Path(scratch)).unet
            merge = server._merge_lora_to_transformer
        else:
            from src.pipelines.flux2_klein import Flux2Klein4BPipeline

            server, network = (
                Flux2Klein4BPipeline(device="cpu"),
                ai_toolkit_flux2_worker.load_model(job, Path(scratch)).unet,
            )
            merge = server._merge_adapter_to_transformer
        # on a CPU it would be float32
        server.dtype = dtype
        merge(network.requires_grad_(False), job["lora"], strength)
        return network


def _fused(job: Job, strength: float, dtype: Any) -> Any:
    from src.pipelines import qwen_image

    kind = qwen_image.QwenImage2512Pipeline
    if job["model"].endswith("2511"):
        kind = qwen_image.QwenImageEditPlus2511Pipeline
    server: Any = kind(device="cpu", offload_mode="none")
    server.dtype = dtype
    with patch.object(kind.CONFIG, "base_model", job["checkpoint"]):
        server.load([job["lora"]], strength)
    # unloaded, what was fused stays
    server.pipe.unload_lora_weights()
    return server.pipe.transformer


def main(job_path: str, out_path: str) -> None:
    prepare()
    from safetensors.torch import save_file

    job = json.loads(Path(job_path).read_text(encoding="utf-8")) | {"quantize_transformer": None, "quantize_te": None}
    tensors = {}
    for index, strength in enumerate(job["strengths"]):
        for name, value in merged(job, strength).state_dict().items():
            tensors[f"merged{index}.{name}"] = value.contiguous().clone()
    save_file(tensors, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
