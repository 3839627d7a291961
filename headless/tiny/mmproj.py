"""The tiny models' vision towers as llama.cpp's converter writes them: in a GGUF file of their own, an ``mmproj``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gguf
from gguf import GGMLQuantizationType, VisionProjectorType

if TYPE_CHECKING:
    import torch

    from .files import Tensors

TowerQuant = Literal["F32", "F16", "BF16", "Q8_0"]
# where gguf's own table of names has none: those of Qwen3-VL, which the converter makes by itself
_MERGER = {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"}
_DEEP = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
_DEEP_BEHIND = (5, 11, 17)


def write_mmproj(path: Path, tower: Tensors, quant: TowerQuant, projector: str = "") -> Path:
    """Writes a tower; returns the path.

    Args:
        path: the file.
        tower: in transformers' names, from ``visual.`` on; Qwen3-VL's is told by its table of positions.
        quant: of its matrices; what that does not fit is F16, and vectors are F32.
        projector: what it calls itself; by default what it is.
    """
    is_qwen3 = "visual.pos_embed.weight" in tower
    kind = VisionProjectorType.QWEN3VL if is_qwen3 else VisionProjectorType.QWEN25VL
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector or kind)
    writer.add_vision_block_count(len({name.split(".")[2] for name in tower if name.startswith("visual.blocks.")}))
    for name, value in (item for pair in tower.items() for item in _named(*pair, fused=is_qwen3)):
        own = _kind(value, quant)
        writer.add_tensor(name, gguf.quants.quantize(value.float().contiguous().numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(name: str, value: torch.Tensor, *, fused: bool) -> list[tuple[str, torch.Tensor]]:
    """A tensor in llama.cpp's names; in several pieces where its converter splits it."""
    module, _, leaf = name.rpartition(".")
    if name == "visual.patch_embed.proj.weight":
        return [("v.patch_embd.weight", value[:, :, 0]), ("v.patch_embd.weight.1", value[:, :, 1])]
    if ".qkv" in module and not fused:
        shares = value.chunk(3)
        return [(_mapped(name.replace("qkv", part)), share) for part, share in zip("qkv", shares, strict=True)]
    steps = module.split(".")
    if fused and steps[1] == "merger":
        return [(f"{_MERGER[steps[2]]}.{leaf}", value)]
    if steps[1] == "deepstack_merger_list":
        return [(f"v.deepstack.{_DEEP_BEHIND[int(steps[2])]}.{_DEEP[steps[3]]}.{leaf}", value)]
    return [(_mapped(name), value)]


def _mapped(name: str) -> str:
    found = _names().get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


@lru_cache(maxsize=1)
def _names() -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 32)


def _kind(value: torch.Tensor, quant: TowerQuant) -> GGMLQuantizationType:
    if value.ndim < 2:
        return GGMLQuantizationType.F32
    if quant == "Q8_0" and (value.ndim > 2 or value.shape[-1] % 32):
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[quant]
