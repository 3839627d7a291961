"""Which cell a worker renders next: one of the checkpoint that it holds already, as long as there are any."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping


class CellQueue:
    """Cells that wait, in groups; within a group nothing is loaded or merged anew.

    Args:
        groups: the group of each cell, in the order in which the cells are to be rendered.
    """

    def __init__(self, groups: Mapping[str, Hashable]) -> None:
        self._groups = dict(groups)
        self._left: dict[Hashable, list[str]] = {}
        for key, group in groups.items():
            self._left.setdefault(group, []).append(key)

    def __len__(self) -> int:
        return sum(map(len, self._left.values()))

    def take(self, own: Hashable, others: Collection[Hashable]) -> str | None:
        """The next cell for a worker; None where none is left.

        Args:
            own: the group that the worker rendered last; None before its first.
            others: the groups of the other workers.
        """
        there = [group for group, keys in self._left.items() if keys]
        if not there:
            return None
        free = [group for group in there if group not in others]
        if own in there:
            group = own
        elif free:
            group = free[0]
        else:
            # it helps where most is left
            group = max(there, key=lambda group: len(self._left[group]))
        return self._left[group].pop(0)

    def give_back(self, key: str) -> None:
        """A cell that was taken and not rendered comes next in its group."""
        self._left[self._groups[key]].insert(0, key)

    def drop(self, key: str) -> None:
        """Takes a cell out that nobody is to render."""
        keys = self._left[self._groups[key]]
        if key in keys:
            keys.remove(key)
