"""One picture over several devices: diffusers' context parallelism shares a denoiser's tokens out over processes.

Each process loads the model, gets its share of the tokens, and ends with the whole picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn


def share(denoiser: nn.Module, processes: int, title: str) -> None:
    """Has a denoiser's next calls shared out over as many processes.

    Args:
        denoiser: one of diffusers' kind.
        processes: each with a device of its own.
        title: of the model, for messages.

    Raises:
        InputError: the model cannot be shared, or not by so many.
    """
    from diffusers import ContextParallelConfig

    model: Any = denoiser
    if getattr(model, "_cp_plan", None) is None:
        raise InputError(
            f"{title} cannot be rendered over {processes} processes: its transformer states no plan for that. Run "
            "it in one."
        )
    try:
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
    except ValueError as error:
        raise InputError(
            f"{title} cannot be rendered over {processes} processes: its attention heads do not divide by them. Start "
            "another number of processes."
        ) from error
