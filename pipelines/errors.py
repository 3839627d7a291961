"""The errors that a user sees. Each message names the thing, says why, and says what to do."""

from __future__ import annotations


class AITKError(Exception):
    """Base of every error that this pack raises on purpose; its text is meant for the user."""

    def __init_subclass__(cls) -> None:
        # ComfyUI shows an error's module to the user, and a custom node's module is called like its whole path
        cls.__module__ = "aitk"


class InputError(AITKError, ValueError):
    """A value on a node (size, steps, seed, prompt, control images, ...) cannot be used."""


class FileError(AITKError):
    """A file is missing, damaged, of the wrong kind, or outside the folders that a workflow may name."""


class LoraError(AITKError):
    """A LoRA file does not fit the model, or holds values that cannot be applied."""


class HubError(AITKError):
    """A Hugging Face repository cannot be used: offline and not cached, gated, or not there."""


class WorkflowError(AITKError):
    """A workflow file cannot be run: broken JSON, an unknown node, a missing input, a cycle."""


class OracleError(AITKError):
    """AI Toolkit's own engine cannot be asked, or gave no picture."""


class DeviceMemoryError(AITKError):
    """The device ran out of memory."""


class PackageError(AITKError):
    """A Python package that this pack needs is missing, or older than requirements.txt asks for."""


class ChildError(AITKError):
    """A process that this pack started beside its own gave no result."""
