"""Which of a model's recipes are the trainer's own at the version of AI Toolkit that rendered a checkpoint's previews.

A LoRA's metadata has the version that saved it, and its previews were rendered by the same process. No log has it: AI
Toolkit prints its version nowhere, and what looks like one in ``log.txt`` is a library's (27a03a91).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from packaging.version import Version

from ..models.recipe import TRAINER_PREVIEW
from .architecture import facts_of
from .loaders import NEW_LOADERS, OLD_LOADERS, version_of

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..models.recipe import Era
    from .job import JobCheckpoint, TrainingJob


def recipes_of(job: TrainingJob, checkpoint: JobCheckpoint, facts: ModelFacts) -> tuple[str, ...]:
    """Names of the recipes by which AI Toolkit may have rendered a checkpoint's previews, newest first.

    Its version does not always tell: it stands still for days, and a LoRA may be gone. The pictures' time then rules
    out what came later.
    """
    eras = [(name, recipe.era) for name, recipe in facts.recipes.items() if recipe.era is not None]
    if not eras:
        return (TRAINER_PREVIEW,)
    eras.sort(key=lambda one: one[1].first or "", reverse=True)
    found = _within(eras, versions_of(job, checkpoint))
    day = _day(job, checkpoint)
    return tuple(name for name, era in found if not day or not era.first or era.first <= day) or tuple(
        name for name, _ in found
    )


def recipes_by_step(
    job: TrainingJob, checkpoints: Iterable[JobCheckpoint], facts: ModelFacts
) -> dict[int, tuple[str, ...]]:
    """The same of several checkpoints, by their steps."""
    return {one.step: recipes_of(job, one, facts) for one in checkpoints}


def versions_of(job: TrainingJob, checkpoint: JobCheckpoint) -> tuple[Version, Version] | None:
    """The oldest and the newest version that may have rendered a checkpoint's previews, or None where nothing tells.

    A LoRA that is gone was saved by a version between its neighbours'; before the first and after the last that tell,
    the nearest one's is taken.
    """
    known = {one.step: version for one in job.checkpoints if (version := version_of(one.trained_with))}
    after = [known[step] for step in sorted(known) if step > checkpoint.step][:1]
    own = known.get(checkpoint.step)
    if own is not None:
        found = [own, *(after if job.samples_on_resume else [])]
    else:
        found = [known[step] for step in sorted(known) if step < checkpoint.step][-1:] + after
    # somebody may have gone back to an older checkout
    return (min(found), max(found)) if found else None


def encoder_types_of(job: TrainingJob, checkpoint: JobCheckpoint) -> tuple[str, ...]:
    """Types to which the text encoder may have been quantised for a checkpoint's previews; the first is taken."""
    if not job.model.encoder_types:
        return (job.model.quantization.get("encoder", "none"),)
    old, new = job.model.encoder_types
    versions = versions_of(job, checkpoint)
    if versions is not None and versions[1] <= OLD_LOADERS:
        return (old,)
    return (new,) if versions is not None and versions[0] >= NEW_LOADERS else (new, old)


def comfy_weights_of(job: TrainingJob, checkpoint: JobCheckpoint) -> tuple[str, ...]:
    """ComfyUI's files that AI Toolkit may have taken for the job's base, by what lay in its models folder."""
    facts, versions = facts_of(job.model), versions_of(job, checkpoint)
    if facts is None or job.model.name_or_path != facts.files.repository or "use_comfy_weights" in job.model.extras:
        return ()
    return () if versions is not None and versions[1] <= OLD_LOADERS else facts.job_files.comfy_weights


def _within(eras: list[tuple[str, Era]], versions: tuple[Version, Version] | None) -> list[tuple[str, Era]]:
    """Of the eras, newest first, those that lie between two versions."""
    if versions is None:
        return eras
    oldest, newest = (_at(eras, version) for version in versions)
    return eras[eras.index(newest[0]) : eras.index(oldest[-1]) + 1]


def _at(eras: list[tuple[str, Era]], version: Version) -> list[tuple[str, Era]]:
    """Of the eras, newest first, those that a version may lie in: at the version at which an era began, in the one
    before it as well."""
    begun = [(name, era) for name, era in eras if Version(era.version) <= version]
    ends = [version, *(Version(era.version) for _, era in begun)]
    # the oldest recipe is the nearest to what was before it
    return [one for one, end in zip(begun, ends, strict=False) if version <= end] or eras[-1:]


def _day(job: TrainingJob, checkpoint: JobCheckpoint) -> str:
    """The day of a checkpoint's first picture, in the latest time zone: ``YYYY-MM-DD``; of a later checkpoint's where
    it has none, or empty."""
    later = [one for one in job.previews if one.step >= checkpoint.step]
    own = [one for one in later if one.step == checkpoint.step]
    times = [int(one.file.path.name.split("_", 1)[0]) for one in own or later]
    if not times:
        return ""
    try:
        return (datetime.fromtimestamp(min(times) / 1000, UTC) + timedelta(hours=14)).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return ""  # no time that a calendar has
