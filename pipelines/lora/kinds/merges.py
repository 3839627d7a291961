"""How references merge a pair of matrices where they do not do so in float32 with one rounding, as AI Toolkit does.

* ``peft``: diffusers' ``fuse_lora``. The pair is cast to the weight's dtype, and the product, its scaling and the sum
  are each rounded to it; on a CPU 16 bits are multiplied and scaled in float32, and the change is rounded once before
  it is added. Source: PEFT peft/tuners/lora/layer.py, Linear.merge and get_delta_weight.
* ``addmm``: ai-toolkit-inference's own merges. The pair is cast to the weight's dtype, and torch's ``addmm`` adds their
  product, which it rounds once, with what it is added to. Source: src/pipelines/krea2.py, _merge_lora_to_transformer;
  flux2.py, _merge_adapter_to_transformer.
* ``file``: the product and its scaling are rounded to the file's dtype, on the CPU, where the file was read to; then to
  the weight's dtype, and so is the sum. Source: ai-toolkit-inference src/pipelines/omnigen2.py, _load_lora.

A strength counts as if the reference had just loaded the model. Its server rescales a fused LoRA by subtracting it, and
PEFT then multiplies the new strength by the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kind import merged_by_rows

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def by_peft(
    weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: float, workspace: Workspace,
    out: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """``weight`` [out, in] with ``up`` [out, rank] @ ``down`` [rank, in] times ``scale``.

    Args:
        weight: of any floating-point dtype.
        up, down: in the weight's dtype.
        scale: of the change.
        workspace: where it is computed.
        out: as for :meth:`.kind.Adapter.merge`.
    """
    import torch

    device = torch.device(workspace.device)
    if device.type == "cpu":
        up, down = up.float(), down.float()

        def change(rows: slice) -> torch.Tensor:
            return workspace.product(up[rows], down)

        return merged_by_rows(weight, change, (scale,), workspace, out, rounds=True)
    whole = (up.to(device) @ down.to(device)).mul_(scale)
    return torch.add(weight.to(device), whole, out=out)


def by_addmm(
    weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: float, workspace: Workspace,
    out: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The same, by ``addmm``."""
    target = own_copy(weight, workspace, out)
    return target.addmm_(up.to(target.device), down.to(target.device), beta=1, alpha=scale)


def in_file_dtype(
    weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: float, workspace: Workspace,
    out: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The same with ``up`` and ``down`` on the CPU, in the file's dtype."""
    import torch

    change = (up @ down).mul_(scale)
    return torch.add(weight.to(workspace.device), change.to(workspace.device, weight.dtype), out=out)


def own_copy(weight: torch.Tensor, workspace: Workspace, out: torch.Tensor | None) -> torch.Tensor:
    """``out`` with the weight's values; or a tensor of its own on the workspace's device."""
    if out is None:
        return weight.to(workspace.device, copy=True)
    return out if out is weight else out.copy_(weight)


def rounded(value: float, dtype: torch.dtype) -> float:
    """As it is in a dtype: ai-toolkit-inference casts a file's alphas, too."""
    import torch

    return torch.tensor(value, dtype=dtype).item()
