"""The kinds of change that a LoRA file makes to a layer, one module each: header check, merge, live branch.

Adding a kind is adding a module and a row here.
"""

from . import difference, dora, full_rank, loha, lokr, low_rank
from .decomposed import SUFFIXES as DECOMPOSED
from .kind import Adapter, Kind, Shape

KINDS: tuple[Kind, ...] = (low_rank.KIND, dora.KIND, full_rank.KIND, lokr.KIND, loha.KIND, difference.KIND)

__all__ = ["DECOMPOSED", "KINDS", "Adapter", "Kind", "Shape"]
