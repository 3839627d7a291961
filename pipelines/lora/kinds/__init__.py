"""The kinds of change that a LoRA file makes to a layer, one module each: header check, merge, live branch.

Adding a kind is adding a module and a row here.
"""

from . import dora, full_rank, lokr, low_rank
from .kind import Adapter, Kind

KINDS: tuple[Kind, ...] = (low_rank.KIND, dora.KIND, full_rank.KIND, lokr.KIND)

__all__ = ["KINDS", "Adapter", "Kind"]
