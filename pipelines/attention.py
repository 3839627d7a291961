"""Attention kernels of packages that a user may have installed; nothing is replaced silently.

diffusers dispatches to them (``models/attention_dispatch.py``, 0.35 and newer).
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .handle import Attention, DType

# choice -> package, and the oldest version that diffusers calls (models/attention_dispatch.py)
_PACKAGES = {"flash": ("flash-attn", (2, 6, 3)), "sage": ("sageattention", (2, 1, 1))}


def check_attention(choice: Attention, device: str, dtype: DType) -> None:
    """Raises InputError where a kernel cannot run here; names what is missing."""
    if choice == "default":
        return
    package, oldest = _PACKAGES[choice]
    wanted = f"transformer_attention {choice!r} needs the package {package} {'.'.join(map(str, oldest))} or newer"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise InputError(f"{wanted}, which is not installed. Install it, or choose default.") from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < oldest:
        raise InputError(f"{wanted}; installed is {found}. Update it, or choose default.")
    if not device.startswith("cuda"):
        raise InputError(f"transformer_attention {choice!r} runs on CUDA devices; this is {device}. Choose default.")
    if dtype == "float32":
        raise InputError(f"transformer_attention {choice!r} runs in bfloat16 or float16. Choose one, or default.")
