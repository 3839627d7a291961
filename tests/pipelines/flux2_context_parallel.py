"""FLUX.2's transformer with its tokens shared out over two processes of this CPU, against itself alone.

    python -m torch.distributed.run --nproc_per_node 2 flux2_context_parallel.py

Prints the largest difference of the first process. diffusers asks torch for accelerators, of which a CPU has none; here
it is told of one CPU device.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    tasks.load_pack()

    import torch
    from comfyui_aitk.pipelines.models.flux2.network import Flux2Transformer
    from comfyui_aitk.pipelines.models.flux2.tokens import image_ids, text_ids
    from diffusers import ContextParallelConfig

    torch.manual_seed(0)
    model = Flux2Transformer(
        context_in_dim=24, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=(8, 8, 8, 8)
    )
    model.eval().requires_grad_(False)
    inputs = {
        "x": torch.randn(1, 20, 128), "x_ids": image_ids(4, 5), "timesteps": torch.tensor([0.7]),
        "ctx": torch.randn(1, 12, 24), "ctx_ids": text_ids(12), "guidance": torch.tensor([4.0]),
    }  # fmt: skip
    expected = model(**inputs)
    torch.distributed.init_process_group("gloo")
    torch._C._get_accelerator = lambda *_: torch.device("cpu")
    torch.accelerator.device_count = lambda: 1
    lengths: list[int] = []
    model.double_blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    difference = float((model(**inputs) - expected).abs().max())
    if torch.distributed.get_rank() == 0:
        print(f"tokens {lengths[0]} of 20, difference {difference}", flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # gloo's threads may outlive the group, and then abort the process as Python ends
    os._exit(0)


if __name__ == "__main__":
    main()
