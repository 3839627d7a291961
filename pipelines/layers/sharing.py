"""One picture over several devices: diffusers' context parallelism shares a denoiser's tokens out over processes.

Each process loads the model, gets its share of the tokens, and ends with the whole picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

_HEADS = ("num_attention_heads", "num_heads")  # in configurations: diffusers' name, and that of FLUX.2's releases


def check_shared(denoiser: nn.Module, processes: int, title: str) -> None:
    """Refuses a denoiser that cannot be shared out; it needs no weights for that.

    Args:
        denoiser: one of diffusers' kind, maybe without storage.
        processes: each with a device of its own.
        title: of the model, for messages.

    Raises:
        InputError: the model cannot be shared, or not by so many.
    """
    model: Any = denoiser
    cannot = f"{title} cannot be rendered over {processes} processes"
    if getattr(model, "_cp_plan", None) is None:
        raise InputError(f"{cannot}: its transformer states no plan for that. Run it in one.")
    heads = next(model.config[name] for name in _HEADS if name in model.config)
    if heads % processes:
        raise InputError(
            f"{cannot}: its {heads} attention heads do not divide by them. Start another number of processes."
        )


def share(denoiser: nn.Module, processes: int, *, uneven: bool = False) -> None:
    """Has a denoiser's next calls shared out over as many processes; :func:`check_shared` says whether that can be.

    Args:
        denoiser: filled.
        processes: each with a device of its own.
        uneven: whether a process may get a token more than another; else all numbers of tokens must divide by them.
            The processes then tell each other what they have before each exchange.
    """
    from diffusers import ContextParallelConfig

    model: Any = denoiser
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes, ulysses_anything=uneven))
