"""What files of Qwen3-VL look like for an encoder that sees pictures: its language model and its vision tower.

The tower's tensors are called ``visual.`` in the model, whatever the file calls them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from .files import LanguageModelFiles
from .qwen3_vl_files import qwen3_vl
from .recognise import kind_of

if TYPE_CHECKING:
    from ...files.header import Header

TOWER = "visual."
_PATCHES = "patch_embed.proj.weight"
_LAYER = "layers.0.self_attn.q_proj.weight"
# what stands in front of both; ComfyUI's all-in-one checkpoints, and its node Save CLIP
_PREFIXES = ("", "text_encoders.qwen3vl_4b.transformer.", "qwen3vl_4b.transformer.")
# in front of the language model's names, and of the tower's: ComfyUI's files; transformers'; a folder's as it is read
_SPELLINGS = (("model.", "visual."), ("model.language_model.", "model.visual."), ("language_model.", "visual."))
# vision_config of Qwen/Qwen3-VL-4B-Instruct, where the tensors do not tell
_TOWER_HEAD = 64
_TOWER = {
    "hidden_act": "gelu_pytorch_tanh",
    "spatial_merge_size": 2,
    "deepstack_visual_indexes": [5, 11, 17],
}


@dataclass(frozen=True)
class SeeingFiles(LanguageModelFiles):
    """Qwen3-VL with its vision tower; see :class:`.files.LanguageModelFiles`."""

    def files(self) -> SingleFiles:
        layouts = [
            Layout(_PREFIXES, (language + _LAYER, tower + _PATCHES), self._respelt(language, tower))
            for language, tower in _SPELLINGS
        ]
        return SingleFiles(tuple(layouts), self._config, self.tokenizer, self._stranger)

    def folder_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers' ``config.json``: the language model's keys at the top, the tower's under ``vision_config``."""
        return {**super().folder_config(config), "vision_config": dict(config.get("vision_config") or {})}

    def _stranger(self, header: Header) -> str:
        if header.metadata.get("general.architecture") == "clip":
            return f"it is a vision tower alone (mmproj). {_CHOOSE}"
        if kind_of(header) in self.kinds and not any(name.endswith(TOWER + _PATCHES) for name in header.tensors):
            # GGUF files keep it in a second file, and a part is read from one
            return f"it is {self.title} without the vision tower, with which it sees pictures. {_CHOOSE}"
        return super()._stranger(header)

    def _config(self, infos: Infos) -> dict[str, Any]:
        width, channels, frames, patch, _ = infos[TOWER + _PATCHES].shape
        blocks = {name.split(".")[2] for name in infos if name.startswith(f"{TOWER}blocks.")}
        tower = {
            **_TOWER,
            "hidden_size": width,
            "in_channels": channels,
            "temporal_patch_size": frames,
            "patch_size": patch,
            "depth": len(blocks),
            "num_heads": max(1, width // _TOWER_HEAD),
            "intermediate_size": infos[f"{TOWER}blocks.0.mlp.linear_fc1.weight"].shape[0],
            "out_hidden_size": infos[f"{TOWER}merger.linear_fc2.weight"].shape[0],
            "num_position_embeddings": infos[f"{TOWER}pos_embed.weight"].shape[0],
        }
        return {**super()._config(infos), "vision_config": tower}

    def _respelt(self, language: str, tower: str) -> Any:
        """The places of a spelling's tensors; nothing of the layers that are not read, and of the head."""

        def places(infos: Infos) -> dict[str, list[Place]]:
            own = {n.removeprefix(language): info for n, info in infos.items() if _is_of(n, language, tower)}
            unread = self._places(own)
            found: dict[str, list[Place]] = {}
            for name in infos:
                if name.startswith(tower):
                    found[name] = [Place(TOWER + name.removeprefix(tower))]
                elif name.startswith("lm_head."):
                    found[name] = []
                elif name.startswith(language):
                    inner = name.removeprefix(language)
                    found[name] = unread.get(inner, [Place(inner)])
            return found

        return places


def _is_of(name: str, language: str, tower: str) -> bool:
    return name.startswith(language) and not name.startswith(tower)


_CHOOSE = "Choose Qwen3-VL in one safetensors file, such as qwen3vl_4b_bf16.safetensors, or default"


def seeing_qwen3_vl(layers: int | None = None) -> SeeingFiles:
    """Qwen3-VL, of whose language model so many layers are read, see :class:`.files.LanguageModelFiles`."""
    plain = qwen3_vl(layers)
    return SeeingFiles(
        title=plain.title,
        model_type=plain.model_type,
        prefixes=_PREFIXES,
        kinds=plain.kinds,
        head=plain.head,
        constants={**plain.constants, "rope_scaling": {"mrope_section": [24, 20, 20]}},
        layers=layers,
    )
