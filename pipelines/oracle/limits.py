"""What keeps the engine from drawing a cell as the trainer did: a table, and what a cell says to each of its rows.

Without any of these the engine runs the trainer's own path, and its picture should be the preview to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.recipe import TRAINER_PREVIEW
from ..words import printable, shown
from .protocol import DTYPE, DTYPES, LORA_MODE, QUANTISATION


@dataclass(frozen=True)
class Circumstances:
    """What decides whether a limit is in force.

    Attributes:
        sent: the request's model section.
        lora: whether a LoRA was sent with it.
        merged_before: whether earlier rounds of the trainer had merged a LoRA into its weights.
        dtype: the job's.
        recipes: those that the trainer may have used, newest first; empty where nobody knows the model.
        loaded: the model section as the engine says that it resolved it; empty where it says nothing.
        mode: how the engine says that it applied the LoRA; empty where it says nothing.
    """

    sent: Mapping[str, Any]
    lora: bool
    merged_before: bool
    dtype: str
    recipes: Sequence[str]
    loaded: Mapping[str, Any]
    mode: str


@dataclass(frozen=True)
class Limit:
    """A reason why the engine's picture may not be the trainer's.

    Attributes:
        name: e.g. ``lora``.
        words: a clause for a user.
    """

    name: str
    words: str


def _lora(cell: Circumstances) -> str:
    if not cell.lora:
        return ""
    if cell.mode and cell.mode != LORA_MODE:
        return f"it applied the LoRA in mode {shown(printable(cell.mode))}, where the weights are rounded at random"
    return "it applies a LoRA as hooks in the dtype of the activations, and the trainer in float32"


def _earlier_rounds(cell: Circumstances) -> str:
    return "it loads the base anew, and the trainer's had what its earlier rounds left" if cell.merged_before else ""


def _quantisation(cell: Circumstances) -> str:
    told = {key: cell.loaded[key] for key in QUANTISATION if key in cell.loaded}
    # a type says nothing where its switch is off on both sides
    ignored = {of for switch, of in (("quantize", "qtype"), ("quantize_te", "qtype_te")) if not cell.sent.get(switch)}
    other = [key for key, value in told.items() if value != cell.sent.get(key) and key not in ignored]
    if not other:
        return ""
    said = ", ".join(f"{key} {shown(_printable(told[key]))} for {shown(cell.sent.get(key))}" for key in other)
    return f"it quantised otherwise than the job: {said}"


def _dtype(cell: Circumstances) -> str:
    said = cell.loaded.get("dtype")
    told = str(said).removeprefix("torch.") if isinstance(said, str) else DTYPE
    theirs = DTYPES.get(told, told)
    if theirs == cell.dtype:
        return ""
    unless = "" if isinstance(said, str) else " unless its own job sets engine.dtype"
    return f"it computes in {printable(theirs[:40])}{unless}, and the job in {cell.dtype}"


def _era(cell: Circumstances) -> str:
    if not cell.recipes or TRAINER_PREVIEW in cell.recipes:
        return ""
    return f"the preview is of an earlier time of AI Toolkit ({', '.join(cell.recipes)}), and the engine of a later one"


_LIMITS: dict[str, Callable[[Circumstances], str]] = {
    "lora": _lora,
    "earlier_rounds": _earlier_rounds,
    "quantisation": _quantisation,
    "dtype": _dtype,
    "era": _era,
}

EXACT = "Here the engine should draw the preview to the bit: there is no LoRA, and the job's own quantisation was sent."


def limits_of(cell: Circumstances) -> tuple[Limit, ...]:
    """The limits in force, in the table's order."""
    found = ((name, words(cell)) for name, words in _LIMITS.items())
    return tuple(Limit(name, words) for name, words in found if words)


def claim(limits: Sequence[Limit]) -> str:
    """What may be expected of the engine, a sentence."""
    if not limits:
        return EXACT
    return f"Here the engine's picture need not be the preview to the bit: {words_of(limits)}."


def words_of(limits: Sequence[Limit]) -> str:
    """All of them in one clause; empty without any."""
    return "; ".join(limit.words for limit in limits)


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
