"""FLUX.2's modules in the released layout, which is ours, and in diffusers'. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...weights.pieces import Piece

# diffusers' module -> the released module whose rows it holds
_TOP: Mapping[str, tuple[Piece, ...]] = {
    "x_embedder": (Piece("img_in"),),
    "context_embedder": (Piece("txt_in"),),
    "time_guidance_embed.timestep_embedder.linear_1": (Piece("time_in.in_layer"),),
    "time_guidance_embed.timestep_embedder.linear_2": (Piece("time_in.out_layer"),),
    "time_guidance_embed.guidance_embedder.linear_1": (Piece("guidance_in.in_layer"),),
    "time_guidance_embed.guidance_embedder.linear_2": (Piece("guidance_in.out_layer"),),
    "double_stream_modulation_img.linear": (Piece("double_stream_modulation_img.lin"),),
    "double_stream_modulation_txt.linear": (Piece("double_stream_modulation_txt.lin"),),
    "single_stream_modulation.linear": (Piece("single_stream_modulation.lin"),),
    "proj_out": (Piece("final_layer.linear"),),
    # scale, then shift; the release has them the other way round
    "norm_out.linear": (
        Piece("final_layer.adaLN_modulation.1", (1, 2)),
        Piece("final_layer.adaLN_modulation.1", (0, 2)),
    ),
}
_DOUBLE: Mapping[str, Piece] = {
    "attn.to_q": Piece("img_attn.qkv", (0, 3)),
    "attn.to_k": Piece("img_attn.qkv", (1, 3)),
    "attn.to_v": Piece("img_attn.qkv", (2, 3)),
    "attn.add_q_proj": Piece("txt_attn.qkv", (0, 3)),
    "attn.add_k_proj": Piece("txt_attn.qkv", (1, 3)),
    "attn.add_v_proj": Piece("txt_attn.qkv", (2, 3)),
    "attn.to_out.0": Piece("img_attn.proj"),
    "attn.to_add_out": Piece("txt_attn.proj"),
    "attn.norm_q": Piece("img_attn.norm.query_norm"),
    "attn.norm_k": Piece("img_attn.norm.key_norm"),
    "attn.norm_added_q": Piece("txt_attn.norm.query_norm"),
    "attn.norm_added_k": Piece("txt_attn.norm.key_norm"),
    "ff.linear_in": Piece("img_mlp.0"),
    "ff.linear_out": Piece("img_mlp.2"),
    "ff_context.linear_in": Piece("txt_mlp.0"),
    "ff_context.linear_out": Piece("txt_mlp.2"),
}
_SINGLE: Mapping[str, Piece] = {
    "attn.to_qkv_mlp_proj": Piece("linear1"),
    "attn.to_out": Piece("linear2"),
    "attn.norm_q": Piece("norm.query_norm"),
    "attn.norm_k": Piece("norm.key_norm"),
}
# FLUX.1's names in diffusers, by which ComfyUI finds these layers too. Those of the attention in single blocks, and
# linear1_qkv, are left out: by them, FLUX.1's own files would be as wide as klein 4B's. linear1 has 3 shares of the
# attention and 6 of the feed-forward layer
_OF_FLUX1: Mapping[str, tuple[Piece, ...]] = {
    "transformer_blocks.{}.ff.net.0.proj": (Piece("double_blocks.{}.img_mlp.0"),),
    "transformer_blocks.{}.ff.net.2": (Piece("double_blocks.{}.img_mlp.2"),),
    "transformer_blocks.{}.ff_context.net.0.proj": (Piece("double_blocks.{}.txt_mlp.0"),),
    "transformer_blocks.{}.ff_context.net.2": (Piece("double_blocks.{}.txt_mlp.2"),),
    "single_transformer_blocks.{}.proj_mlp": (
        Piece("single_blocks.{}.linear1", (1, 3)), Piece("single_blocks.{}.linear1", (2, 3)),
    ),
    "single_transformer_blocks.{}.proj_out": (Piece("single_blocks.{}.linear2"),),
}  # fmt: skip
# released block, diffusers' block, what is in it
_BLOCKS = (("double_blocks", "transformer_blocks", _DOUBLE), ("single_blocks", "single_transformer_blocks", _SINGLE))


def diffusers_modules(names: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """diffusers' module -> pieces of the released modules, for the blocks that occur in ``names``, of either kind."""
    names = list(names)
    table = dict(_TOP)
    for released, theirs, inside in _BLOCKS:
        found = {int(match[1]) for name in names if (match := re.match(rf"(?:{released}|{theirs})\.(\d+)\.", name))}
        for index in sorted(found):
            for module, piece in inside.items():
                own = Piece(f"{released}.{index}.{piece.module}", piece.share)
                table[f"{theirs}.{index}.{module}"] = (own,)
    return table


def names_of_flux1(names: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """FLUX.1's module -> pieces of the released modules, whose names are given."""
    indices = {int(match[1]) for name in names if (match := re.match(r"(?:double|single)_blocks\.(\d+)\.", name))}
    return {
        module.format(index): tuple(Piece(piece.module.format(index), piece.share) for piece in pieces)
        for index in sorted(indices)
        for module, pieces in _OF_FLUX1.items()
    }
