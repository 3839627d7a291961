"""Shares of a module's rows: what one naming keeps in one module, another may keep in several. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Some rows of a module's tensors, or all of them.

    Attributes:
        module: in the model.
        share: (index, count): the index-th, from 0, of ``count`` equal shares of the rows; (0, 1) is all of them.
    """

    module: str
    share: tuple[int, int] = (0, 1)

    @property
    def whole(self) -> bool:
        """Whether it is all of the module's rows."""
        return self.share == (0, 1)

    def rows(self, total: int) -> tuple[int, int]:
        """First row and the one after the last, in a tensor of ``total`` rows.

        Raises:
            ValueError: the rows do not divide into so many shares.
        """
        index, count = self.share
        height, rest = divmod(total, count)
        if rest:
            raise ValueError(f"the {total} rows of {self.module!r} are not {count} equal shares")
        return index * height, (index + 1) * height
