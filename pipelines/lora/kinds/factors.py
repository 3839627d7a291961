"""The tensors in a change that is a dataclass, so that they can be moved between devices."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def tensors_of(change: Any) -> dict[str, torch.Tensor]:
    """The tensors among a dataclass' fields, by name."""
    import torch

    values = {field.name: getattr(change, field.name) for field in fields(change)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def with_tensors(change: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The same change with other tensors in its fields."""
    return replace(change, **tensors)
