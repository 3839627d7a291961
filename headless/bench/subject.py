"""What is measured: a model with random weights, LoRAs for it, and the pictures that are rendered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

MODEL_INDEX = "model_index.json"
STACK = 8  # LoRAs on one model
STRENGTH = 0.3  # of each; eight of them are no overflow
_WARM_UP = "tiny"
# runtime options at which a run is diffusers', whose encoder does as transformers does today
LIKE_DIFFUSERS = {"lumina2": {"text_encoder_attention": "softcap"}}


@dataclass(frozen=True)
class Setting:
    """The same for both sides, and in every process.

    Attributes:
        model: id in the catalogue.
        folder: holds the checkpoints ``model`` and ``tiny`` and the LoRAs.
        device: the compute device, like ``cpu``.
        realistic: whether the model is as large as to say something about times.
        pairs: how often each pair of runs is repeated.
        steps: of a picture.
        size: of a picture, both sides, in pixels.
        guidance: above 1, so that every step is two model calls.
    """

    model: str
    folder: Path
    device: str
    realistic: bool
    pairs: int
    steps: int = 2
    size: int = 256
    guidance: float = 4.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model"

    @property
    def lora_files(self) -> list[Path]:
        return _loras(self.folder)

    @property
    def weights(self) -> int:
        """Bytes of the checkpoint's weights."""
        return sum(file.stat().st_size for file in self.checkpoint.rglob("*.safetensors"))

    @property
    def is_made(self) -> bool:
        """Whether all of its files are there."""
        return all(
            (one.checkpoint / MODEL_INDEX).is_file() and all(file.is_file() for file in one.lora_files)
            for one in (self, self.warm_up())
        )

    def warm_up(self) -> Setting:
        """Of a tiny model: a run of it has every library imported."""
        return replace(self, folder=self.folder / _WARM_UP, size=64, steps=1)

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Setting:
        values = json.loads(text)
        return cls(**values | {"folder": Path(values["folder"])})


def make(setting: Setting) -> None:
    """Writes what is missing in the setting's folder."""
    write = _WRITERS[setting.model]
    write(setting.warm_up().folder, False, False)
    write(setting.folder, setting.realistic, setting.device != "cpu")


def _lumina2(folder: Path, realistic: bool, full: bool) -> None:
    """``full`` has the layers of the released model; else two gigabytes, which a CPU computes in seconds."""
    from ..tiny.lumina2 import Sizes, make_checkpoint, make_lora

    sizes, checkpoint = Sizes(), folder / "model"
    if realistic:
        sizes = Sizes(hidden=2304, heads=24, kv_heads=8, layers=9, refiners=1, text_hidden=256)
    if realistic and full:
        sizes = replace(sizes, layers=26, refiners=2, text_hidden=2304, text_layers=26)
    if not (checkpoint / MODEL_INDEX).is_file():
        make_checkpoint(checkpoint, sizes=sizes)
    for seed, path in enumerate(_loras(folder)):
        if not path.is_file():
            make_lora(path, checkpoint, rank=16 if realistic else 4, seed=seed, size=0.05)


def _loras(folder: Path) -> list[Path]:
    # one more than are on the model together: another one that was never read
    return [folder / f"lora{number}.safetensors" for number in range(STACK + 1)]


_WRITERS: dict[str, Callable[[Path, bool, bool], None]] = {"lumina2": _lumina2}
MODELS = tuple(_WRITERS)
