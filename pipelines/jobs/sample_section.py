"""What AI Toolkit makes of a job's ``sample`` section: one picture's settings for each of its samples.

Its values are untyped: a size may be a text, a seed a Boolean. What Python makes of them is what the trainer makes of
them, so they are kept as they are until :mod:`.job_samples` decides which of them a picture can be rendered with.

Sources: AI Toolkit config_modules.py SampleConfig, SampleItem and GenerateImageConfig, BaseSDTrainProcess.py sample,
prompt_utils.py inject_trigger_into_prompt (27a03a91).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

from .prompt_flags import split_prompt

SMALLEST_SIDE = 64  # pixels
_CONTROL_IMAGES = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


class TrainerRefusal(Exception):
    """AI Toolkit dies of a value.

    Attributes:
        kind: its exception's type, e.g. ``ValueError``.
        stage: ``config`` while it reads the job, ``sample`` while it begins a round.
        text: what Python says.
    """

    def __init__(self, kind: str, stage: Literal["config", "sample"], text: str) -> None:
        super().__init__(text)
        self.kind, self.stage, self.text = kind, stage, text


@dataclass(frozen=True)
class Random:
    """The seed that the trainer draws."""


@dataclass(frozen=True)
class Settings:
    """What one picture is rendered with. Values are of whatever type the job has; sizes are floored to 8."""

    prompt: Any
    negative_prompt: Any
    width: Any
    height: Any
    steps: Any
    guidance_scale: Any
    seed: Any
    multiplier: Any
    num_frames: Any
    ctrl_img: Any
    ctrl_img_1: Any
    ctrl_img_2: Any
    ctrl_img_3: Any
    do_cfg_norm: Any


@dataclass(frozen=True)
class Failed:
    """A sample that the trainer dies of: its prompt as the job has it, and why."""

    prompt: Any
    refusal: TrainerRefusal


@dataclass(frozen=True)
class SampleRound:
    """A section, read.

    Attributes:
        pictures: in order; where one has failed, the trainer renders none of the round.
        extension: of the pictures' files, as the section has it.
        sampler: AI Toolkit's name, ``ddpm`` where the section has none.
    """

    pictures: tuple[Settings | Failed, ...]
    extension: Any
    sampler: Any

    @property
    def one_multiplier(self) -> bool:
        """Whether the network has the same multiplier in all pictures; AI Toolkit merges it then, where it can."""
        # by hash and identity, as in AI Toolkit's set: the NaNs of two texts are two multipliers
        return len(set(map(_hashable, self._multipliers))) == 1

    @property
    def multiplier(self) -> float | None:
        """The one that all pictures have; None where they have several, or what is no number."""
        value = self._multipliers[0] if self.one_multiplier else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    @property
    def _multipliers(self) -> list[Any]:
        return [one.multiplier for one in self.pictures if isinstance(one, Settings)]

    @property
    def refusal(self) -> TrainerRefusal | None:
        """What keeps the trainer from rendering the round."""
        return next((one.refusal for one in self.pictures if isinstance(one, Failed)), None)


def read_section(section: Any, trigger_word: Any) -> SampleRound:
    """Reads a ``sample`` or ``first_sample`` section.

    Args:
        section: plain data; None is an empty one.
        trigger_word: the process's; None where it has none.

    Raises:
        TrainerRefusal: AI Toolkit dies of the section while it reads the job.
    """
    with _dying("config"):
        section = _mapping({} if section is None else section)
        extension = section.get("format", "jpg")
        if section.get("num_frames", 1) > 1:
            extension = "webp"
        legacy = [{"prompt": prompt} for prompt in section.get("prompts", [])]
        items = [_mapping(item) for item in section.get("samples", legacy)]
    # AI Toolkit counts the prompts that are there and then takes the i-th item: without a prompt, an item's settings
    # go to the next one's
    prompts = [item["prompt"] for item in items if item.get("prompt") is not None]
    pictures: list[Settings | Failed] = []
    seed = section.get("seed", 0)
    for index, (prompt, item) in enumerate(zip(prompts, items, strict=False)):
        try:
            with _dying("sample"):
                if section.get("walk_seed", False):
                    seed = section.get("seed", 0) + index
                if item.get("seed") is not None:
                    # without walk_seed it stays for the pictures that follow
                    seed = item["seed"]
                pictures.append(_settings(_triggered(prompt, trigger_word), item, section, seed))
        except TrainerRefusal as refusal:
            pictures.append(Failed(prompt, refusal))
    return SampleRound(tuple(pictures), extension, section.get("sampler", "ddpm"))


@contextmanager
def _dying(stage: Literal["config", "sample"]) -> Iterator[None]:
    # what Python's operators, int() and float() raise on values of a wrong type is what the trainer dies of
    try:
        yield
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TrainerRefusal(type(error).__name__, stage, str(error)) from error


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object is needed, not {type(value).__name__}")
    return value


def _triggered(prompt: Any, trigger_word: Any) -> Any:
    if trigger_word is None:
        return prompt
    return prompt.replace("[name]", trigger_word).replace("[trigger]", trigger_word)


def _settings(prompt: Any, item: Mapping[str, Any], section: Mapping[str, Any], seed: Any) -> Settings:
    def own(key: str, default: Any) -> Any:
        return item.get(key, section.get(key, default))

    images = {key: item.get(key) for key in _CONTROL_IMAGES}
    if images["ctrl_img_1"] is None:
        images["ctrl_img_1"] = images["ctrl_img"]
    found: dict[str, Any] = {
        "negative_prompt": own("neg", False),
        "width": own("width", 512),
        "height": own("height", 512),
        "steps": own("sample_steps", 20),
        "guidance_scale": own("guidance_scale", 7),
        "seed": Random() if seed == -1 else seed,
        "multiplier": _multiplier(own("network_multiplier", 1)),
        "num_frames": own("num_frames", 1),
        # an item's own is read and not used
        "do_cfg_norm": section.get("do_cfg_norm", False),
        **images,
    }
    if prompt is not None and len(prompt) > 0:
        prompt, flags = split_prompt(prompt)
        known = {one.name for one in fields(Settings)}
        found |= {name: value for name, value in flags.items() if name in known}
    found |= {side: max(SMALLEST_SIDE, found[side] - found[side] % 8) for side in ("height", "width")}
    return Settings(prompt=prompt, **found)


def _multiplier(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return 1.0  # AI Toolkit prints that it is no number, and goes on


def _hashable(value: Any) -> Any:
    return value if value.__hash__ else str(value)
