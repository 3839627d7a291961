"""The pictures of a round as values that can be rendered, each with what keeps it from being rendered as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..options import Chosen
from ..words import shown
from .job import JobSample
from .sample_section import Failed, Random, SampleRound, Settings

if TYPE_CHECKING:
    from ..models.facts import ModelFacts

# what torch.manual_seed takes; a negative seed stands for itself plus 2^64
_SEEDS = range(-(1 << 63), 1 << 64)
_LARGEST = 3e38  # float32's
# recipe options of this pack that a sample sets, of models whose recipes read them
CFG_NORM, IMAGE_TWICE = "do_cfg_norm", "first_image_twice"
_ONE_STEP = "mean_flow"  # takes the whole prediction off at every step
Samples = tuple[JobSample, ...]


def job_samples(found: SampleRound, control_images: int, options: Collection[str] = ()) -> tuple[JobSample, ...]:
    """The pictures of a round.

    Args:
        found: as AI Toolkit reads it.
        control_images: how many the model takes: one is AI Toolkit's ``ctrl_img``, several are ``ctrl_img_1`` to
            ``ctrl_img_3``, of which ``ctrl_img`` takes the first's place.
        options: the recipe options that the model's recipes read.
    """
    return tuple(
        _failed(index, picture) if isinstance(picture, Failed) else _sample(index, picture, control_images, options)
        for index, picture in enumerate(found.pictures)
    )


def of_sampler(samples: Samples, sampler: Any, noise_scheduler: Any, facts: ModelFacts | None) -> Samples:
    """The samples, each with what its round's sampler keeps from being rendered.

    AI Toolkit hands it to one of its classes only, whose pipeline takes no other schedule than flow matching's; where
    the section says ``null``, that class takes the one that it trains with.

    Args:
        samples: of the round.
        sampler: of its section.
        noise_scheduler: the job's ``train.noise_scheduler``.
        facts: the model's; None where it is unknown.
    """
    used = noise_scheduler if sampler is None else sampler
    if facts is None or not facts.preview_sampler or used == facts.preview_sampler:
        return samples
    key = "train.noise_scheduler" if sampler is None else "sample.sampler"
    if used == _ONE_STEP:
        why = f"{key} is {shown(used)}, whose loop this pack does not have."
    else:
        why = f"{key} is {shown(used)}, with which AI Toolkit stops at {facts.title}'s first picture."
    why += f" Set {facts.preview_sampler} in the job's config, if that is what it was rendered with."
    return tuple(replace(one, problem=f"{one.problem} {why}".strip()) for one in samples)


def _failed(index: int, picture: Failed) -> JobSample:
    prompt = picture.prompt if isinstance(picture.prompt, str) else ""
    why = f"{picture.refusal.kind}: {picture.refusal.text[:200]}"
    problem = f"AI Toolkit stops at this sample's prompt or sizes ({why})."
    return JobSample(index, prompt, None, 0, 0, 0, 0.0, None, 0.0, problem=problem)


class _Problems:
    """Values as a picture needs them, and a note of each that is none."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def text(self, name: str, value: Any) -> str | None:
        return value if isinstance(value, str) else self._note(name, value, "no text, at which AI Toolkit stops")

    def whole(self, name: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._note(name, value, "no whole number")
        return 0

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and abs(value) <= _LARGEST:
            return float(value)
        self._note(name, value, "no number that a picture can be rendered with")
        return 0.0

    def seed(self, value: Any) -> int | None:
        """The seed by which a generator draws what ``torch.manual_seed(value)`` makes it draw."""
        if isinstance(value, Random):
            self.found.append("AI Toolkit drew its seed at random, and no file keeps it")
            return None
        try:
            seed = int(value)
        except (TypeError, ValueError, OverflowError):
            return self._note("seed", value, "no number")
        return seed % (1 << 64) if seed in _SEEDS else self._note("seed", value, "none that torch takes")

    def images(self, values: list[Any]) -> tuple[str, ...]:
        for value in values:
            if not value or not isinstance(value, str):
                self._note("control image", value, "no path")
        return tuple(value for value in values if isinstance(value, str))

    def still(self, frames: Any) -> None:
        if frames != 1:
            self._note("num_frames", frames, "a video's")

    def _note(self, name: str, value: Any, what: str) -> None:
        self.found.append(f"its {name} is {shown(value)}, {what}")


def _sample(index: int, picture: Settings, control_images: int, options: Collection[str]) -> JobSample:
    problems = _Problems()
    problems.still(picture.num_frames)
    sample = JobSample(
        index=index,
        prompt=problems.text("prompt", picture.prompt) or "",
        negative_prompt=problems.text("negative prompt (neg)", picture.negative_prompt),
        width=problems.whole("width", picture.width),
        height=problems.whole("height", picture.height),
        steps=problems.whole("number of steps (sample_steps)", picture.steps),
        guidance_scale=problems.number("guidance_scale", picture.guidance_scale),
        seed=problems.seed(picture.seed),
        multiplier=problems.number("network_multiplier", picture.multiplier),
        control_images=problems.images(_control_images(picture, control_images)),
        recipe_options=Chosen.of(dict(_options(picture, problems, options))),
    )
    text = "; ".join(problems.found)
    return replace(sample, problem=f"{text[0].upper()}{text[1:]}.") if text else sample


def _options(picture: Settings, problems: _Problems, read: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The recipe options that a sample sets, of those that the model's recipes read."""
    if CFG_NORM in read:
        yield CFG_NORM, bool(picture.do_cfg_norm)
    if IMAGE_TWICE in read:
        # the text encoder sees both, and the autoencoder ctrl_img alone; an item that has ctrl_img alone has the same
        # as ctrl_img_1, but where ctrl_img is a flag of the prompt
        both = picture.ctrl_img is not None and picture.ctrl_img_1 is not None
        if both and picture.ctrl_img_1 != picture.ctrl_img:
            problems.found.append("it has both ctrl_img and another ctrl_img_1, of which the text encoder sees both")
        yield IMAGE_TWICE, both


def _control_images(picture: Settings, count: int) -> list[Any]:
    if count == 1:
        images = [picture.ctrl_img]
    else:
        first = picture.ctrl_img_1 if picture.ctrl_img is None else picture.ctrl_img
        images = [first, picture.ctrl_img_2, picture.ctrl_img_3][:count]
    return [image for image in images if image is not None]
