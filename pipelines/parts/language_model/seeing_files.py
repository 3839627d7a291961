"""What files of a language model that sees pictures look like: its layers, and its vision tower. Imports no torch.

The tower's tensors are called ``visual.`` in the model, whatever the file calls them. GGUF files have it in a second
file beside them: see :mod:`.mmproj`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...weights.beside import Beside, how_to_put
from ...weights.layout import Infos, Layout, Place, SingleFiles
from .files import GGUF_SIGNATURE, LanguageModelFiles
from .mmproj import PATCHES, SIGNATURE, TOWER, TowerNames
from .recognise import kind_of

if TYPE_CHECKING:
    from ...files.header import Header

_PATCHES = PATCHES.removeprefix(TOWER)
_LAYER = "layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True, kw_only=True)
class SeeingFiles(LanguageModelFiles):
    """One kind; see :class:`.files.LanguageModelFiles`. ``prefixes`` stand in front of both, model and tower.

    Attributes:
        spellings: what stands in front of the language model's names, and of the tower's.
        tower: llama.cpp's names of the tower.
        tower_head: channels of a head in the tower, in every released size.
        tower_constants: of the released tower, where a single file's tensors do not tell.
        tower_rows: key of the tower's configuration -> the tensor whose rows tell it.
        blind: what :func:`.recognise.kind_of` may call files that lack the tower.
        example: a file that has it.
    """

    spellings: tuple[tuple[str, str], ...]
    tower: TowerNames
    tower_head: int
    tower_constants: Mapping[str, Any]
    tower_rows: Mapping[str, str]
    blind: tuple[str, ...]
    example: str

    def files(self) -> SingleFiles:
        layouts = [
            Layout(self.prefixes, (language + _LAYER, tower + _PATCHES), partial(self._respelt, language, tower))
            for language, tower in self.spellings
        ]
        layouts.append(Layout(("",), (*GGUF_SIGNATURE, *SIGNATURE), self._places_of_two))
        beside = Beside(self._lacks_tower, self.tower.projector, self.title)
        return SingleFiles(tuple(layouts), self._config, self.tokenizer, self._stranger, beside)

    def folder_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers' ``config.json``: the language model's keys at the top, the tower's under ``vision_config``."""
        return {**super().folder_config(config), "vision_config": dict(config.get("vision_config") or {})}

    def _config(self, infos: Infos) -> dict[str, Any]:
        width, channels, frames, patch, _ = infos[PATCHES].shape
        tower = {
            **self.tower_constants,
            "hidden_size": width,
            "in_channels": channels,
            "temporal_patch_size": frames,
            "patch_size": patch,
            "depth": len({name.split(".")[2] for name in infos if name.startswith(f"{TOWER}blocks.")}),
            "num_heads": max(1, width // self.tower_head),
            **{key: infos[TOWER + name].shape[0] for key, name in self.tower_rows.items()},
        }
        return {**super()._config(infos), "vision_config": tower}

    def _stranger(self, header: Header) -> str:
        if header.metadata.get("general.architecture") == "clip":
            return f"it is a vision tower alone (mmproj). Choose the GGUF file of {self.title} that it lies beside"
        lacks = f"it is {self.title} without the vision tower, with which it sees pictures"
        whole = f"{self.title} in one safetensors file, such as {self.example}, or default"
        if self._lacks_tower(header):
            return f"{lacks}. {how_to_put(header.path, self.title)}; or choose {whole}"
        if kind_of(header) in self.blind and not _sees(header):
            return f"{lacks}. Choose {whole}"
        return super()._stranger(header)

    def _lacks_tower(self, header: Header) -> bool:
        """Whether a header is that of llama.cpp's language model, and of no tower."""
        return "token_embd.weight" in header.tensors and kind_of(header) in self.kinds and not _sees(header)

    def _places_of_two(self, infos: Infos) -> dict[str, list[Place]]:
        """Those of llama.cpp's names in both files."""
        tower = self.tower.places(infos)
        return {**self._gguf_places({name: info for name, info in infos.items() if name not in tower}), **tower}

    def _respelt(self, language: str, tower: str, infos: Infos) -> dict[str, list[Place]]:
        """The places of a spelling's tensors; nothing of the layers that are not read, and of the head."""
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


def _is_of(name: str, language: str, tower: str) -> bool:
    return name.startswith(language) and not name.startswith(tower)


def _sees(header: Header) -> bool:
    return any(name.endswith(PATCHES) or name == SIGNATURE[0] for name in header.tensors)
