"""Attention kernels of packages that a user may have installed; nothing is replaced silently.

diffusers dispatches to them (``models/attention_dispatch.py``, 0.35 and newer).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ..options import Attention, DType

# choice -> package, and the oldest version that diffusers calls (models/attention_dispatch.py)
_PACKAGES = {
    "flash": ("flash-attn", "2.6.3"),
    "sage": ("sageattention", "2.1.1"),
    "flash 3": ("flash-attn-3", "3.0"),
    "xformers": ("xformers", "0.0.29"),
}
# diffusers' names of them
_BACKENDS = {"default": "native", "flash 3": "_flash_3"}


def check_attention(choice: Attention, device: str, dtype: DType) -> None:
    """Raises InputError where a kernel cannot run here; names what is missing."""
    if choice == "default":
        return
    from packaging.version import Version

    package, oldest = _PACKAGES[choice]
    wanted = f"transformer_attention {choice!r} needs the package {package} {oldest} or newer"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise InputError(f"{wanted}, which is not installed. Install it, or choose default.") from None
    if Version(found) < Version(oldest):
        raise InputError(f"{wanted}; installed is {found}. Update it, or choose default.")
    if not device.startswith("cuda"):
        raise InputError(f"transformer_attention {choice!r} runs on CUDA devices; this is {device}. Choose default.")
    if dtype == "float32":
        raise InputError(f"transformer_attention {choice!r} runs in bfloat16 or float16. Choose one, or default.")


def backend_name(choice: str) -> str:
    """What diffusers calls a kernel."""
    return _BACKENDS.get(choice, choice)


@contextmanager
def kernel(denoiser: nn.Module, choice: str) -> Iterator[None]:
    """Runs every attention of a denoiser through a kernel; ``default`` is torch's SDPA, whatever the environment says.

    Set on the processors that hand a backend to diffusers' dispatcher: a model's own setter would change the active
    backend of the whole process.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    backend = AttentionBackendName(backend_name(choice))
    found: list[Any] = [getattr(module, "processor", None) for module in denoiser.modules()]
    processors = [processor for processor in found if hasattr(processor, "_attention_backend")]
    before = [processor._attention_backend for processor in processors]
    try:
        for processor in processors:
            processor._attention_backend = backend
        yield
    finally:
        for processor, own in zip(processors, before, strict=True):
            processor._attention_backend = own
