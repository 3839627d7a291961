"""Why our picture may not be the trainer's: what the recorded run and ours are known to differ in, likeliest first.

It compares two descriptions and looks at no pixel. What a folder does not say is listed as unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from .described import Described

_OFFLOADING = "layer_offloading"  # of a job's model section


class Standing(IntEnum):
    """How sure a cause is."""

    DIFFERS = 0
    """Both sides are known, and are not the same."""
    POSSIBLE = 1
    """What is known leaves room for a difference."""
    UNKNOWN = 2
    """One side says nothing."""


@dataclass(frozen=True)
class Cause:
    """Something that can make the pictures differ.

    Attributes:
        name: e.g. ``dtype``.
        standing: how sure it is.
        recorded, ours: what each side says; empty where it says nothing.
        words: a sentence or two for a user.
    """

    name: str
    standing: Standing
    recorded: str
    ours: str
    words: str

    def as_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "standing": self.standing.name.lower(),
            "recorded": self.recorded,
            "ours": self.ours,
            "words": self.words,
        }


def causes(
    recorded: Described, ours: Described, *, base_is_equal: bool = False, kernels: str = ""
) -> tuple[Cause, ...]:
    """What may make the two pictures differ: what is known to first, then what is possible, then what is unknown.

    Among the equally sure, what usually changes a picture more comes first.

    Args:
        recorded: the trainer's run.
        ours: ours.
        base_is_equal: the same sample at step 0 came out identical. Then only what a LoRA brings along can differ.
        kernels: the name of those that change ours as much as it differs; empty where none was found.
    """
    checks = _OF_A_LORA if base_is_equal else (*_OF_THE_REQUEST, *_OF_THE_BASE, *_OF_A_LORA, *_OF_THE_MACHINE)
    found = [cause for check in checks for cause in check(recorded, ours)]
    if kernels:
        # of what is possible, it alone was measured
        found.insert(0, Cause("kernels", Standing.POSSIBLE, "", kernels, _KERNELS.format(kernels)))
    # stable: the order of the checks remains among equals
    return tuple(sorted(found, key=lambda cause: cause.standing))


_KERNELS = "Kernels alone can explain it: with others ({}) our own picture changes as much."

Check = Callable[[Described, Described], Iterator[Cause]]


def _equal_or_not(name: str, attribute: str, title: str, advice: str) -> Check:
    """A check that two values are the same; ``advice`` is a sentence for where they are not."""

    def check(recorded: Described, ours: Described) -> Iterator[Cause]:
        theirs, own = getattr(recorded, attribute), getattr(ours, attribute)
        if theirs is None and own is None:
            return
        if theirs is None or own is None:
            who = "The trainer's folder" if theirs is None else "Our report"
            words = f"{who} does not say the {title}; the other side has {_said(own if theirs is None else theirs)}."
            yield Cause(name, Standing.UNKNOWN, _said(theirs), _said(own), words)
        elif theirs != own:
            words = f"The {title} is {_said(own)}, the trainer's {_said(theirs)}. {advice}"
            yield Cause(name, Standing.DIFFERS, _said(theirs), _said(own), words)

    return check


def _said(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _model(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = recorded.model or "", ours.model or ""
    # AI Toolkit drops what follows the colon; which weights of the family these are, the base says
    if theirs and own and theirs.partition(":")[0] != own.partition(":")[0]:
        yield Cause("model", Standing.DIFFERS, theirs, own, f"The model is {own}, and the job's {theirs}. Load that.")


def _prompts(recorded: Described, ours: Described) -> Iterator[Cause]:
    pairs = (
        ("prompt", recorded.prompt, ours.prompt),
        ("negative prompt", recorded.negative_prompt, ours.negative_prompt),
    )
    for title, theirs, own in pairs:
        # a run without guidance encodes no negative prompt
        if theirs is not None and own is not None and theirs.strip() != own.strip():
            words = f"The {title} is not the sample's. Copy it from the job, with the trigger word filled in."
            yield Cause(title.replace(" ", "_"), Standing.DIFFERS, theirs, own, words)


def _seed(recorded: Described, ours: Described) -> Iterator[Cause]:
    if recorded.seed is None:
        words = "The trainer drew a random seed, which no file keeps: the picture cannot be repeated."
        yield Cause("seed", Standing.UNKNOWN, "", _said(ours.seed), words)
    else:
        yield from _equal_or_not("seed", "seed", "seed", "Another seed is another picture.")(recorded, ours)


def _control_images(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = recorded.control_images, ours.control_images
    if theirs is not None and own is not None and theirs != own:
        words = f"The sample has {theirs} control images, and ours was given {own}. Connect the job's, in their order."
        yield Cause("control_images", Standing.DIFFERS, str(theirs), str(own), words)
    elif theirs:
        words = "The folder does not keep the control images: whether ours are the trainer's own files is unknown."
        yield Cause("control_images", Standing.UNKNOWN, str(theirs), _said(own), words)


def _base(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = recorded.weights or "", ours.weights or ""
    if recorded.fingerprint and ours.fingerprint:
        if recorded.fingerprint != ours.fingerprint:
            # two names may be one, and one name two revisions
            theirs, own = f"{theirs} ({recorded.fingerprint})", f"{own} ({ours.fingerprint})"
            words = f"The weights of the base are {own}, the trainer's {theirs}. Load the job's base."
            yield Cause("base", Standing.DIFFERS, theirs, own, words)
    elif not theirs or not own:
        yield Cause("base", Standing.UNKNOWN, theirs, own, "Which base was loaded is not said.")
    elif theirs.strip("/").casefold() != own.partition("@")[0].strip("/").casefold():
        words = (
            f"The base has another name: ours is {own}, and the job names {theirs}. Both may be the same weights; if "
            "they are not, every picture differs, that of step 0 too."
        )
        yield Cause("base", Standing.POSSIBLE, theirs, own, words)
    else:
        words = (
            f"The job names its base without a revision, and ours is {own}: the repository or the file may have "
            "changed between the two."
        )
        yield Cause("base", Standing.UNKNOWN, theirs, own, words)


def _era(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = ", ".join(recorded.recipes), ", ".join(ours.recipes)
    if not recorded.recipes or not ours.recipes:
        words = "Which version of AI Toolkit rendered the preview is unknown, and with it the recipe that repeats it."
        yield Cause("era", Standing.UNKNOWN, theirs, own, words)
    elif not set(ours.recipes) <= set(recorded.recipes):
        words = f"The recipe is {own}; when the preview was rendered, AI Toolkit sampled as in {theirs}. Choose that."
        yield Cause("era", Standing.DIFFERS, theirs, own, words)
    elif len(recorded.recipes) > 1:
        words = f"The preview may be of several times of AI Toolkit: {theirs}. Ours is {own}; try the others."
        yield Cause("era", Standing.POSSIBLE, theirs, own, words)


def _loras(recorded: Described, ours: Described) -> Iterator[Cause]:
    if recorded.loras is None or ours.loras is None:
        yield Cause("lora", Standing.UNKNOWN, "", "", "Which LoRA was applied is not said.")
        return
    theirs, own = (", ".join(sorted(one)) for one in (recorded.loras, ours.loras))
    if theirs != own:
        words = f"The LoRA is {own or 'none'}, and the preview has {theirs or 'none'}. Apply the one saved at its step."
        yield Cause("lora", Standing.DIFFERS, theirs, own, words)
    for name, strength in recorded.loras.items():
        other = ours.loras.get(name)
        if strength is not None and other is not None and strength != other:
            words = f"The strength of {name} is {other:g}, the trainer's {strength:g}. Set the sample's multiplier."
            yield Cause("lora_strength", Standing.DIFFERS, _said(strength), _said(other), words)


def _lora_application(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = recorded.lora_application, ours.lora_application
    if theirs is not None and own is not None and theirs != own:
        words = f"The LoRA is {own}, the trainer's was {theirs}: in bfloat16 these round otherwise. Set application."
        yield Cause("lora_application", Standing.DIFFERS, theirs, own, words)


def _lora_precision(recorded: Described, ours: Described) -> Iterator[Cause]:
    if recorded.lora_dtype is None or not ours.loras:
        return
    if ours.lora_dtype is None:
        words = f"The trainer rendered with LoRA weights in {recorded.lora_dtype}; the type in the file is unknown."
        yield Cause("lora_precision", Standing.UNKNOWN, recorded.lora_dtype, "", words)
    elif ours.lora_dtype != recorded.lora_dtype:
        words = (
            f"The file holds the LoRA in {ours.lora_dtype}, and the trainer rendered with its weights in "
            f"{recorded.lora_dtype}, which no file keeps. A job with save.dtype {recorded.lora_dtype} has no such loss."
        )
        yield Cause("lora_precision", Standing.DIFFERS, recorded.lora_dtype, ours.lora_dtype, words)


def _earlier_rounds(recorded: Described, ours: Described) -> Iterator[Cause]:
    theirs, own = recorded.merges_before, ours.merges_before
    if not theirs or own is None:
        return
    merged, merged_here = (", ".join(f"{one:g}" for one in each) for each in (theirs, own))
    rounds = "1 earlier round" if len(theirs) == 1 else f"{len(theirs)} earlier rounds"
    if theirs == own:
        words = (
            f"Our base has what {rounds} left in the trainer's, by the pictures and the logs in the job's folder. A "
            "restart that they do not tell of, or a round whose pictures are gone, makes another base."
        )
        yield Cause("earlier_rounds", Standing.POSSIBLE, merged, merged_here, words)
    elif min(theirs) < 0:
        words = (
            f"The job merged its LoRA for {rounds}, at a negative multiplier, which AI Toolkit does not take off its "
            "weights. Not all of these LoRAs are there: ours is on the base without them, and the picture cannot be "
            "drawn again."
        )
        yield Cause("spoiled_base", Standing.DIFFERS, merged, merged_here, words)
    else:
        words = (
            f"The job merged its LoRA into the base and out again for {rounds}, and each time left some rounding in it "
            "unless it was restarted since: in float32 1 level on a few values, in bfloat16 more."
        )
        yield Cause("merge_drift", Standing.POSSIBLE, merged, merged_here, words)


def _other_files(recorded: Described, ours: Described) -> Iterator[Cause]:
    for key, value in recorded.extras.items():
        if key == _OFFLOADING:
            # it decides how LoRAs are applied, which is compared
            continue
        words = f"The job sets model.{key} to {value}. Our report does not say it: check that ours has the same."
        yield Cause(f"model.{key}", Standing.UNKNOWN, value, "", words)


def _step_caching(recorded: Described, ours: Described) -> Iterator[Cause]:
    if ours.step_caching and not recorded.step_caching:
        words = "Step caching was on, which the trainer does not have. Set step_caching to 0."
        yield Cause("step_caching", Standing.DIFFERS, "off", "on", words)


def _versions(recorded: Described, ours: Described) -> Iterator[Cause]:
    unknown = [name for name in ours.versions if name not in recorded.versions]
    for name, own in ours.versions.items():
        theirs = recorded.versions.get(name)
        if theirs is not None and theirs != own:
            words = f"{name} is {own}, and the trainer's was {theirs}. Its last bits may not be the same."
            yield Cause(f"version_of_{name}", Standing.DIFFERS, theirs, own, words)
    if unknown:
        own = ", ".join(f"{name} {ours.versions[name]}" for name in unknown)
        words = f"The folder does not say the trainer's versions of {', '.join(unknown)}."
        yield Cause("versions", Standing.UNKNOWN, "", own, words)


_OF_THE_REQUEST: tuple[Check, ...] = (
    _model,
    _prompts,
    _seed,
    _equal_or_not("steps", "steps", "number of steps", "Set the sample's."),
    _equal_or_not("guidance_scale", "guidance_scale", "guidance scale", "Set the sample's."),
    _equal_or_not(
        "snapping", "size", "picture's size", "Sizes were snapped otherwise, or the sample's size was not asked for."
    ),
    _control_images,
)
_OF_THE_BASE: tuple[Check, ...] = (
    _base,
    _other_files,
    _era,
    _equal_or_not(
        "quantization",
        "denoiser_quantization",
        "transformer's quantisation",
        "Choose the job's in AITK Runtime Options.",
    ),
    _equal_or_not(
        "text_encoder_quantization",
        "encoder_quantization",
        "text encoder's quantisation",
        "Choose the job's in AITK Runtime Options.",
    ),
    _equal_or_not("dtype", "dtype", "dtype of the run", "Choose the job's train.dtype on the loader."),
    _step_caching,
)
_OF_A_LORA: tuple[Check, ...] = (
    _loras,
    _lora_application,
    _lora_precision,
    _earlier_rounds,
)
_OF_THE_MACHINE: tuple[Check, ...] = (
    _equal_or_not("device", "device", "device", "Devices have kernels of their own."),
    _equal_or_not("attention", "attention", "attention backend", "Backends have kernels of their own."),
    _versions,
)
