"""Which of a model's recipes are the trainer's own at the version of AI Toolkit that rendered a job's previews."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from packaging.version import Version

from ..models.recipe import TRAINER_PREVIEW
from .model_section import version_of

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..models.recipe import Era
    from .job import TrainingJob


def recipes_of(job: TrainingJob, facts: ModelFacts) -> tuple[str, ...]:
    """Names of the recipes by which AI Toolkit may have rendered the job's previews, newest first.

    Its version does not always tell: it stands still for days. The first picture's time then rules out what came later.
    """
    eras = [(name, recipe.era) for name, recipe in facts.recipes.items() if recipe.era is not None]
    if not eras:
        return (TRAINER_PREVIEW,)
    eras.sort(key=lambda one: one[1].first or "", reverse=True)
    found = _by_version(eras, version_of(job.trained_with))
    day = _first_day(job)
    return tuple(name for name, era in found if not day or not era.first or era.first <= day) or tuple(
        name for name, _ in found
    )


def _by_version(eras: list[tuple[str, Era]], version: Version | None) -> list[tuple[str, Era]]:
    """Of the eras, newest first, those that a version may lie in: at the version at which an era began, in the one
    before it as well."""
    if version is None:
        return eras
    begun = [(name, era) for name, era in eras if Version(era.version) <= version]
    ends = [version, *(Version(era.version) for _, era in begun)]
    # the oldest recipe is the nearest to what was before it
    return [one for one, end in zip(begun, ends, strict=False) if version <= end] or eras[-1:]


def _first_day(job: TrainingJob) -> str:
    """The day of the first picture that is still there, in the latest time zone: ``YYYY-MM-DD``, or empty."""
    times = [int(one.file.path.name.split("_", 1)[0]) for one in job.previews]
    if not times:
        return ""
    try:
        return (datetime.fromtimestamp(min(times) / 1000, UTC) + timedelta(hours=14)).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return ""  # no time that a calendar has
