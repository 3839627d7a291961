"""The kinds of change that a LoRA file makes to a layer, one module each: header check, merge, live branch.

Adding a kind is adding a module and a row here.
"""

from . import adalora, difference, dora, full_rank, glora, ia3, loha, lokr, low_rank, oft, oft_v2, whole
from .decomposed import SUFFIXES as DECOMPOSED
from .kind import Adapter, Kind, Shape

KINDS: tuple[Kind, ...] = (
    low_rank.KIND, dora.KIND, adalora.KIND, full_rank.KIND, lokr.KIND, loha.KIND, glora.KIND, oft.KIND, oft_v2.KIND,
    ia3.KIND, whole.KIND, difference.KIND,
)  # fmt: skip

__all__ = ["DECOMPOSED", "KINDS", "Adapter", "Kind", "Shape"]
