"""Krea 2's modules in the released layout, which is ours, and in diffusers'. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...weights.pieces import Piece

# diffusers' module -> the released one. Parameters without a module stand for themselves
_TOP = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.norm": "txtmlp.0",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    "final_layer.linear": "last.linear",
    "final_layer.norm": "last.norm",
    "final_layer.scale_shift_table": "last.modulation.lin",
}
_BLOCKS = {
    "transformer_blocks": "blocks",
    "text_fusion.layerwise_blocks": "txtfusion.layerwise_blocks",
    "text_fusion.refiner_blocks": "txtfusion.refiner_blocks",
}
_INSIDE = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    "attn.norm_q": "attn.qknorm.qnorm",
    "attn.norm_k": "attn.qknorm.knorm",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
    "norm1": "prenorm",
    "norm2": "postnorm",
    "scale_shift_table": "mod.lin",
}
_BLOCK = re.compile(r"(.+_blocks)\.(\d+)\.(.+)")
_OWN_BLOCK = re.compile(r"((?:txtfusion\.\w+_)?blocks)\.(\d+)\.")


def released_module(module: str) -> str | None:
    """The released name of a module, or of a parameter without one, of diffusers; None where it has no such one."""
    match = _BLOCK.fullmatch(module)
    if match is None:
        return _TOP.get(module)
    blocks, inside = _BLOCKS.get(match[1]), _INSIDE.get(match[3])
    return f"{blocks}.{match[2]}.{inside}" if blocks and inside else None


def diffusers_modules(modules: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """diffusers' module -> the released one, for these released modules."""
    modules = list(modules)
    known = set(modules)
    theirs = {own: name for name, own in _BLOCKS.items()}
    table: dict[str, tuple[Piece, ...]] = {name: (Piece(own),) for name, own in _TOP.items() if own in known}
    blocks = {match.groups() for module in modules if (match := _OWN_BLOCK.match(module))}
    for own, index in sorted(blocks):
        for name, inside in _INSIDE.items():
            if f"{own}.{index}.{inside}" in known:
                table[f"{theirs[own]}.{index}.{name}"] = (Piece(f"{own}.{index}.{inside}"),)
    return table
