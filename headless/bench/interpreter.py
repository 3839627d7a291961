"""The Python that runs a child process: this one, or that of a program that the pack is compared with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Interpreter:
    """Runs a child.

    Attributes:
        python: the executable.
        checkout: a folder whose modules the child finds before this pack's; none where it is empty.
    """

    python: str = sys.executable
    checkout: str = ""

    def search_path(self, root: str) -> str:
        """The child's PYTHONPATH, at whose end stands the root of this pack."""
        return os.pathsep.join(filter(None, (self.checkout, root)))


THIS = Interpreter()
