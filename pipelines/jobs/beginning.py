"""How a training begins: at which step, with which LoRA, and which previews it renders before it trains.

Source: AI Toolkit BaseSDTrainProcess.py run, get_latest_save_path and load_training_state_from_metadata (27a03a91).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .job import JobSample

Section = Literal["first_sample", "sample"]


@dataclass(frozen=True)
class Beginning:
    """The state before the first step of training.

    Attributes:
        step: that it counts from.
        lora: path of the LoRA that it begins with; empty for a fresh one, whose up weights are zero: it adds nothing,
            and AI Toolkit merges nothing of it.
    """

    step: int
    lora: str


def read_beginning(process: Mapping[str, Any], train: Mapping[str, Any], notes: list[str]) -> Beginning:
    """How a job began when its folder was empty; a sentence on what its config leaves open."""
    said, network = train.get("start_step"), process.get("network")
    path = network.get("pretrained_lora_path") if isinstance(network, Mapping) else None
    step = said if isinstance(said, int) else 0
    if step > 1 and train.get("force_first_sample"):
        notes.append(
            f"The job sets train.start_step: whenever it was started, it rendered step {step} first, with its latest "
            "LoRA. Those pictures are taken for the first start's."
        )
    if isinstance(path, str) and path:
        notes.append(
            "The job sets network.pretrained_lora_path: its first previews have that LoRA, unless it was not there, "
            "where AI Toolkit goes on without."
        )
    return Beginning(step, path if isinstance(path, str) else "")


def rounds_at_start(train: Mapping[str, Any], own_first: bool, step: int) -> tuple[tuple[int, Section], ...]:
    """The rounds that AI Toolkit renders before it trains, in order: the step in their files' names, and the settings.

    Args:
        train: the job's section.
        own_first: whether it has a section ``first_sample``.
        step: at which the training is started or taken up.
    """
    if train.get("disable_sampling"):
        return ()
    rounds: list[tuple[int, Section]] = [(0, "first_sample")] if own_first and step <= 1 else []
    if not train.get("skip_first_sample") and (step <= 1 or train.get("force_first_sample")):
        rounds.append((step, "sample"))
    return tuple(rounds)


def samples_of_step_0(
    rounds: tuple[tuple[int, Section], ...], samples: Mapping[Section, tuple[JobSample, ...]]
) -> tuple[JobSample, ...]:
    """What the pictures of step 0 are of: where two rounds have one name, the later one's picture is the latest."""
    found: dict[int, JobSample] = {}
    for step, section in rounds:
        if step == 0:
            found |= {one.index: one for one in samples[section]}
    return tuple(found[index] for index in sorted(found)) or samples["sample"]
