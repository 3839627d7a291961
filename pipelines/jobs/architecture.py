"""A job's architecture: what AI Toolkit takes it for, and which entry of the catalogue it is.

Source: AI Toolkit config_modules.py ModelConfig (27a03a91).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models import catalogue
from .config_text import object_or_empty

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from .job import JobModel

# the old way to name an architecture, `is_xl: true`; every other one is `is_` and its name
_OLD_NAMES = {"is_v2": "sd2", "is_v3": "sd3", "is_xl": "sdxl"}
# settings of a kind of model that begin like an architecture
_NO_ARCHITECTURE = ("is_v_pred",)
_RENAMED = {"flex1": "flux"}
_NO_ARCH = "sd1"  # what AI Toolkit takes a section for that says nothing


def arch_of(section: Mapping[str, Any]) -> str:
    """AI Toolkit's name of a model section's architecture, e.g. ``zimage:turbo``."""
    said = section.get("arch")
    if isinstance(said, str) and said:
        bare, colon, tag = said.partition(":")
        return _RENAMED.get(bare, bare) + colon + tag
    # AI Toolkit asks in an order of its own, which no job with one of them depends on
    old = [key for key in section if key.startswith("is_") and section[key] and key not in _NO_ARCHITECTURE]
    return _OLD_NAMES.get(old[0], old[0].removeprefix("is_")) if old else _NO_ARCH


def facts_of(model: JobModel) -> ModelFacts | None:
    """The catalogue's entry of a job's model, or None.

    AI Toolkit drops what follows the colon of an arch, so a job may say ``zimage`` of the weights of ``zimage:turbo``:
    an entry whose repository is the job's own comes first. What tells entries of one repository from each other is in
    the job's model_kwargs.
    """
    kwargs = object_or_empty(model.section.get("model_kwargs"))
    family = [
        facts
        for facts in entries_of(model.arch)
        if all(bool(kwargs.get(key, False)) == on for key, on in facts.job_files.signs.items())
    ]
    for facts in family:
        if facts.files.repository == model.name_or_path:
            return facts
    of_name = {facts.id: facts for facts in family}
    # the name may be that of an entry whose signs the job does not have
    return of_name.get(model.arch, of_name.get(_bare(model.arch), next(iter(family), None)))


def entries_of(arch: str) -> list[ModelFacts]:
    """The entries of an arch, whatever its tag."""
    return [facts for facts in catalogue().values() if _bare(facts.id) == _bare(arch)]


def _bare(arch: str) -> str:
    return arch.split(":", 1)[0]
