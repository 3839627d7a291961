"""Which of AI Toolkit's ways to load a model a job's version had: they changed once.

Source: AI Toolkit 27a03a91, and what 0.12.26 and 0.13.5 did.
"""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

# AI Toolkit's loaders changed between these: the first was seen before, the second after
OLD_LOADERS, NEW_LOADERS = Version("0.12.26"), Version("0.13.5")


def version_of(text: str) -> Version | None:
    """A version of AI Toolkit as a LoRA has it, or None where it is none."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


def by_old_loaders(trained_with: str) -> bool:
    """Whether a version of AI Toolkit is known to load weights as it did before 0.13."""
    version = version_of(trained_with)
    return version is not None and version <= OLD_LOADERS
