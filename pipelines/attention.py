"""Attention kernels of packages that a user may have installed; nothing is replaced silently.

diffusers dispatches to them (``models/attention_dispatch.py``, 0.35 and newer).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .handle import Attention, DType

# choice -> (package as imported, as installed)
_PACKAGES = {"flash": ("flash_attn", "flash-attn"), "sage": ("sageattention", "sageattention")}


def check_attention(choice: Attention, device: str, dtype: DType) -> None:
    """Raises InputError where a kernel cannot run here; names what is missing."""
    if choice == "default":
        return
    module, package = _PACKAGES[choice]
    if find_spec(module) is None:
        raise InputError(
            f"transformer_attention {choice!r} needs the package {package}, which is not installed. Install it into "
            "ComfyUI's Python, or choose default."
        )
    if not device.startswith("cuda"):
        raise InputError(f"transformer_attention {choice!r} runs on CUDA devices; this is {device}. Choose default.")
    if dtype == "float32":
        raise InputError(f"transformer_attention {choice!r} runs in bfloat16 or float16. Choose one, or default.")
