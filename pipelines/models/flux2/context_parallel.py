"""How diffusers' context parallelism shares FLUX.2's tokens out over devices."""

from __future__ import annotations

from typing import Any


def _plan() -> Any:
    try:
        from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
    except ImportError:
        # diffusers before 0.36
        return None
    tokens = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)
    return {
        "": dict.fromkeys(("x", "x_ids", "ctx", "ctx_ids"), tokens),
        "final_layer.linear": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


PLAN = _plan()
