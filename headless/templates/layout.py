"""Where the nodes of a template stand, so that nothing overlaps in ComfyUI's classic canvas nor in Nodes 2.0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# what a node needs in the renderer in which it is the taller, measured in frontend 1.45; a saved size that is smaller
# grows when the file opens, over whatever stands below; what a LoRA's card, previews and the panels of a run need is in
# it, and the width that shows names of files whole
_SIZES = {
    "AITKRuntimeOptions": (360, 350),
    "LoadAITKModel": (480, 290),
    "ApplyAITKLoRA": (360, 380),
    "AITKLoRAStack": (360, 760),
    "AITKTrainingAdapter": (360, 160),
    "AITKRecoveryAdapter": (360, 190),
    "AITKTrainingJob": (360, 200),
    "AITKReplayPreviews": (440, 640),
    "AITKControlImages": (300, 160),
    "AITKRecipeOptions": (440, 300),
    "AITKSampler": (440, 1010),
    "AITKEncodeImage": (300, 200),
    "AITKDecodeLatent": (300, 200),
    "AITKSaveImage": (440, 560),
    "AITKComparePreviews": (440, 320),
    "LoadImage": (300, 380),
    "PreviewImage": (440, 420),
}
_GAP = 60  # between nodes that stand below each other, a title in it
_BETWEEN = 100  # between columns
_MARGIN = 20  # of a group around its nodes
_HEADING = 100  # of a group above its first node: its own title and the node's
_NOTE_WIDTH = 420
_LINE, _LETTERS = 24, 50  # of a note: a line's height, and how many letters it holds
_CELL = 12  # of a table in a note: above and below the words of a row


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int

    def as_json(self) -> dict[str, Any]:
        """As the editor saves a node's place."""
        return {"pos": [self.x, self.y], "size": [self.width, self.height]}


@dataclass(frozen=True)
class Placed:
    """A finished layout.

    Attributes:
        note: on the left of everything.
        nodes: in the order in which they were given.
        groups: one around each column: x, y, width, height.
    """

    note: Box
    nodes: list[Box]
    groups: list[list[int]]


def place(nodes: Sequence[tuple[int, str]], columns: Sequence[str], note_height: int) -> Placed:
    """Columns from left to right, each as wide as its widest node, its nodes below each other.

    Args:
        nodes: column and class id of each.
        columns: their titles.
        note_height: see :func:`note_height`.
    """
    boxes: dict[int, Box] = {}
    groups = []
    x = 0
    for column in range(len(columns)):
        own = [index for index, (where, _) in enumerate(nodes) if where == column]
        width = max(_SIZES[nodes[index][1]][0] for index in own)
        y = 0
        for index in own:
            height = _SIZES[nodes[index][1]][1]
            boxes[index] = Box(x, y, width, height)
            y += height + _GAP
        groups.append([x - _MARGIN, -_HEADING, width + 2 * _MARGIN, y - _GAP + _HEADING + _MARGIN])
        x += width + _BETWEEN
    note = Box(-_NOTE_WIDTH - _BETWEEN, 0, _NOTE_WIDTH, note_height)
    return Placed(note, [boxes[index] for index in range(len(nodes))], groups)


def note_height(text: str) -> int:
    """How much room a note's Markdown takes."""
    read = re.sub(r"\]\([^)]*\)", "]", text)  # of a link its words
    lines = [line for line in read.splitlines() if not line.startswith("| ---")]
    return 60 + sum(map(_line_height, lines))


def _line_height(line: str) -> int:
    if not line.startswith("|"):
        return _LINE * (1 + len(line) // _LETTERS)
    # a table's columns share the width
    cells = line.strip("|").split("|")
    return _LINE * max(1 + len(cell.strip()) * len(cells) // _LETTERS for cell in cells) + _CELL
