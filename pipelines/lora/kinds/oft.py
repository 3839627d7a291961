"""OFT: blocks of the weight's rows are turned, W' = R^T W; and BOFT, a product of such turns of mixed rows.

``oft_blocks`` [count, height, height] are made skew, Q = blocks - blocks^T, and R = (I + Q) (I - Q)^-1, where Q is
first shortened to the length alpha * out; alpha 0, and none, leave it. kohya's script for FLUX keeps one tensor for
each share of a fused layer, ``oft_blocks.0``, ``.1``, ...; a length is then that of a share. ``rescale`` multiplies the
rows.
Sources: kohya networks/oft.py and oft_flux.py, get_weight; LyCORIS lycoris/modules/diag_oft.py.

BOFT has ``oft_blocks`` [factors, count, height, height], and W' = R_m ... R_1 W. Before factor i the rows, seen as
[., 2, 2^i * height / 2], are ordered as [., 2^i * height / 2, 2], and after it put back. Source: LyCORIS
lycoris/modules/boft.py.

Other strengths than 1 weaken each turn, m * R + (1 - m) * I, as kohya, LyCORIS and ComfyUI's bypass do; ComfyUI's merge
multiplies what comes of it by m once more. They weaken ``rescale`` alike, 1 + m * (rescale - 1), which LyCORIS applies
whole at any strength and ComfyUI's merge of OFT not at all. ComfyUI shortens to alpha, not to alpha * out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape
from .of_weight import OfWeight

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo

_MOST_SHARES = 8


@dataclass(frozen=True, eq=False)
class Oft(OfWeight):
    """One layer's turns.

    Attributes:
        turns: R of each block, one after the other.
        blocks: heights, from the first row to the last; ``turns`` has that many squared values for each.
        rescale: [out, 1], or None.
    """

    turns: torch.Tensor
    blocks: tuple[int, ...]
    rescale: torch.Tensor | None

    @property
    def is_zero(self) -> bool:
        import torch

        still = all(bool((turns == torch.eye(turns.shape[-1])).all()) for _, turns in self._groups())
        return still and (self.rescale is None or bool((self.rescale == 1).all()))

    def rows(self, first: int, last: int) -> Oft:
        kept, begin, end, values = [], None, 0, 0
        for height in self.blocks:
            inside = first <= end and end + height <= last
            if not inside and end < last and end + height > first:
                raise ValueError("a block would be cut")
            if inside:
                begin = values if begin is None else begin
                kept.append(height)
            end, values = end + height, values + height * height
        begin = begin or 0
        length = sum(height * height for height in kept)
        rescale = None if self.rescale is None else self.rescale[first:last]
        return Oft(self.turns[begin : begin + length], tuple(kept), rescale)

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        import torch

        parts, start = [], 0
        for rows, turns in self._groups():
            own = weight[start : start + rows].reshape(len(turns), -1, weight.shape[1])
            parts.append(torch.lerp(own, turns.transpose(1, 2) @ own, strength).flatten(0, 1))
            start += rows
        return _rescaled(torch.cat(parts), self.rescale, strength)

    def _groups(self) -> list[tuple[int, torch.Tensor]]:
        """(rows, [count, height, height]) of neighbours of one height."""
        groups, start, place = [], 0, 0
        while place < len(self.blocks):
            height, count = self.blocks[place], 1
            while self.blocks[place + count : place + count + 1] == (height,):
                count += 1
            end = start + count * height * height
            groups.append((count * height, self.turns[start:end].view(count, height, height)))
            start, place = end, place + count
        return groups


@dataclass(frozen=True, eq=False)
class Boft(OfWeight):
    """``turns`` [factors, count, height, height]; ``rescale`` [out, 1] or None."""

    turns: torch.Tensor
    rescale: torch.Tensor | None

    @property
    def is_zero(self) -> bool:
        import torch

        still = bool((self.turns == torch.eye(self.turns.shape[-1])).all())
        return still and (self.rescale is None or bool((self.rescale == 1).all()))

    def rows(self, first: int, last: int) -> Boft:
        raise ValueError("every row depends on others")

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        import torch

        count, height = self.turns.shape[1:3]
        still = torch.eye(height, device=weight.device)
        value = weight
        for number, turns in enumerate(torch.lerp(still.expand_as(self.turns), self.turns, strength)):
            step = 2**number * height // 2
            mixed = value.reshape(-1, 2, step, weight.shape[1]).transpose(1, 2)
            turned = turns @ mixed.reshape(count, height, -1)
            value = turned.reshape(-1, step, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        return _rescaled(value, self.rescale, strength)


def _rescaled(weight: torch.Tensor, rescale: torch.Tensor | None, strength: float) -> torch.Tensor:
    import torch

    return weight if rescale is None else weight * torch.lerp(torch.ones_like(rescale), rescale, strength)


def _turns(blocks: torch.Tensor, alpha: float) -> torch.Tensor:
    """R of each block; ``blocks`` are those of one length."""
    import torch

    skew = blocks - blocks.transpose(-1, -2)
    limit = alpha * blocks.shape[-3] * blocks.shape[-1]
    length = torch.linalg.vector_norm(skew)
    if 0 < limit < length:
        skew = skew * (limit / length)
    still = torch.eye(blocks.shape[-1])
    # I + Q and (I - Q)^-1 may change places
    return torch.linalg.solve(still - skew, still + skew)


def _roles(found: Mapping[str, object]) -> list[str]:
    """Of the tensors of blocks, in the order of their rows."""
    return [role for role in ("oft_blocks", *_SHARES) if role in found]


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    blocks: tuple[int, ...] = ()
    for role in _roles(infos):
        shape = infos[role].shape
        if len(shape) not in (3, 4) or 0 in shape or shape[-1] != shape[-2] or (len(shape) == 4 and role in _SHARES):
            raise ValueError(f"oft_blocks {list(shape)} are no square blocks")
        if len(shape) == 4:
            factors, count, height, _ = shape
            if height % 2 or factors > 64 or count % 2 ** (factors - 1):
                raise ValueError(f"oft_blocks {list(shape)} are no butterfly")
            blocks = (count * height,)
        else:
            blocks += (shape[1],) * shape[0]
    rows = sum(blocks)
    if "oft_rescale" in infos and infos["oft_rescale"].shape not in ((rows,), (rows, *[1] * (len(whole) - 1))):
        raise ValueError(f"rescale {list(infos['oft_rescale'].shape)} does not fit {rows} rows")
    return Shape((rows, *whole[1:]), None, blocks)


def _make(tensors: Mapping[str, torch.Tensor]) -> Oft | Boft:
    import torch

    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    rescale = tensors["oft_rescale"].reshape(-1, 1) if "oft_rescale" in tensors else None
    found = [tensors[role] for role in _roles(tensors)]
    if found[0].ndim == 4:
        return Boft(_turns(found[0], alpha), rescale)
    turns = torch.cat([_turns(blocks, alpha).flatten() for blocks in found])
    return Oft(turns, tuple(blocks.shape[1] for blocks in found for _ in blocks), rescale)


_SHARES = tuple(f"oft_blocks_{number}" for number in range(_MOST_SHARES))

KIND = Kind(
    title="OFT",
    suffixes={
        ".oft_blocks": "oft_blocks",
        **{f".oft_blocks.{number}": role for number, role in enumerate(_SHARES)},
        ".rescale": "oft_rescale",
        ".alpha": "alpha",
    },
    complete=(
        frozenset({"oft_blocks"}),
        frozenset({"oft_blocks", "oft_rescale"}),
        *(frozenset(_SHARES[: count + 1]) for count in range(_MOST_SHARES)),
    ),
    shape=_shape,
    make=_make,
    of_weight=True,
)
