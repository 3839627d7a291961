"""Fills a model with tensors: one at a time, each checked, straight into the dtype or quantisation that it runs in.

The model is made without storage first, so that at no time more than one tensor exists twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from ..errors import AITKError, DeviceMemoryError, FileError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.packed import PackedTensor
    from .finite import FiniteChecks
    from .holding import Holding

_BUILDING = RLock()
M = TypeVar("M", bound="nn.Module")


def build_empty(factory: Callable[[], M], config: str) -> M:
    """Makes a model whose parameters have shapes but no storage; its buffers are real, they are not in any file.

    Args:
        factory: makes it from its configuration.
        config: names the configuration in errors.

    Raises:
        FileError: the library can make no model of it.
        DeviceMemoryError: there is no memory for it.
    """
    import torch
    from accelerate import init_empty_weights

    try:
        # ComfyUI runs nodes in inference mode, and buffers that were made in it are of no use outside. accelerate
        # patches torch's modules for all threads: two at once would each restore what the other one patched
        with _BUILDING, torch.inference_mode(False), init_empty_weights(include_buffers=False):
            return factory()
    except AITKError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise no_memory(config) from error
        # any value may be missing or of a wrong kind, and each gives another exception
        raise FileError(f"{config} cannot be used ({type(error).__name__}). Download it again.") from error


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of whatever device."""
    # torch has a class of its own for CUDA alone
    words = ("out of memory", "allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def no_memory(what: str) -> DeviceMemoryError:
    """What is raised instead."""
    return DeviceMemoryError(
        f"The computer ran out of memory while {what} was loaded. Close other programs, or choose smaller "
        "files, e.g. a GGUF or a scaled float8 file."
    )


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """State-dict name -> shape."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def fill(
    model: M,
    tensors: Iterable[tuple[str, torch.Tensor | PackedTensor]],
    dtype: torch.dtype,
    where: str,
    check: Callable[[], None],
    *,
    holding: Holding | None = None,
) -> M:
    """Puts tensors into a model made by :func:`build_empty`.

    Args:
        model: the model; tensors that it does not have are left out (the caller has compared the names).
        tensors: name and value; floating-point values are cast to ``dtype``. A packed weight of a Linear layer stays
            packed, the layer becomes a PackedLinear; any other packed tensor is made dense.
        dtype: what the model runs in.
        where: names the source in errors.
        check: called before each tensor; raises to interrupt.
        holding: the form of its layers' weights, each one as soon as it is read; None leaves them dense.

    Returns:
        The same model, in eval mode, without gradients.

    Raises:
        FileError: a tensor holds NaN or Inf, or what the form cannot hold.
        DeviceMemoryError: there is no memory for a tensor.
    """
    try:
        _fill(model, tensors, dtype, where, check, holding)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise no_memory(where) from error
    return model.eval().requires_grad_(False)


def _fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, torch.Tensor | PackedTensor]],
    dtype: torch.dtype,
    where: str,
    check: Callable[[], None],
    holding: Holding | None,
) -> None:

    from .finite import FiniteChecks

    slots: Mapping[str, torch.Tensor] = model.state_dict(keep_vars=True)
    with FiniteChecks(where) as checks:
        for name, value in tensors:
            check()
            if name in slots:
                _put(model, name, value, slots[name], dtype, where, holding, checks)
        checks.finish()


def _put(
    model: nn.Module,
    name: str,
    value: torch.Tensor | PackedTensor,
    slot: torch.Tensor,
    dtype: torch.dtype,
    where: str,
    holding: Holding | None,
    checks: FiniteChecks,
) -> None:
    """Puts one tensor in the place of a slot."""
    import torch

    from ..files.packed import PackedTensor
    from .finite import check_finite, check_finite_packed
    from .holding import replace_layer
    from .packed_linear import PackedLinear

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if not isinstance(value, PackedTensor) and slot.is_floating_point() and not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise FileError(f"{where} cannot be used: its tensor {name!r} holds {kind}, of which nothing is said.")
    if isinstance(value, PackedTensor):
        if isinstance(module, torch.nn.Linear) and leaf == "weight":
            check_finite_packed(value, dtype, name, where)
            replace_layer(model, owner, PackedLinear(value, module.bias, dtype))
            return
        cast = value.dequantize(dtype)
    else:
        cast = value.to(dtype if value.is_floating_point() else value.dtype)
        # a piece of a larger tensor gets memory of its own: LoRAs are merged in place
        if cast.untyped_storage().nbytes() != cast.nbytes:
            cast = cast.clone()
    if holding is not None and leaf == "weight" and holding.takes(module, owner):
        check_finite(cast, name, where)
        holding.hold(model, owner, cast, where)
        return
    checks.add(name, cast)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(cast, requires_grad=False)
    else:
        module._buffers[leaf] = cast
