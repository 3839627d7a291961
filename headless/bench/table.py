"""How the rows are shown: on a terminal, and as BENCHMARK.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipelines.run.report import pack_version, versions
from .rows import NOISE, Row

if TYPE_CHECKING:
    from .subject import Setting

_DIFFUSERS = "diffusers"


def lines_of(rows: Sequence[Row], realistic: bool, peer: str = _DIFFUSERS) -> list[str]:
    """The table for a terminal; ``peer`` is who ours is beside."""
    cells = [_head(peer), *(_cells(row, realistic) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def page_of(rows: Sequence[Row], setting: Setting, weights: int, line: str, sections: Sequence[str] = ()) -> str:
    """The same as a page, with the machine and the versions, and further sections at its end."""
    return "\n".join(
        [
            "# Times and memory",
            "",
            f"`python3 tasks.py bench --write` wrote this page on {datetime.now(UTC):%Y-%m-%d}. Ours is this pack "
            f"{pack_version()}; beside it stand plain diffusers calls on the same files, by turns.",
            "",
            f"* machine: {_machine(setting.device)}",
            f"* versions: {', '.join(f'{name} {number}' for name, number in versions().items())}",
            f"* model: {setting.model} with random weights, {weights / 1e9:.2f} GB in bfloat16; {setting.size} px, "
            f"{setting.steps} steps, guidance {setting.guidance:g}",
            f"* medians of {setting.pairs} pairs; two times that differ by less than {NOISE:.0%} are taken for equal",
            "",
            *_table(rows, setting.realistic, _DIFFUSERS),
            "",
            line,
            "",
            *sections,
        ]
    )


def section_of(rows: Sequence[Row], setting: Setting, peer: str, about: str) -> str:
    """A section of the page with another peer's table, below what is to be known ``about`` it."""
    return "\n".join([f"## Beside {peer}", "", about, "", *_table(rows, setting.realistic, peer), ""])


def _head(peer: str) -> tuple[str, ...]:
    return "what", "ours", peer, "ratio", "target", "", "note"


def _table(rows: Sequence[Row], realistic: bool, peer: str) -> list[str]:
    head = _head(peer)
    return [
        "| " + " | ".join(line) + " |"
        for line in (head, ["---"] * len(head), *(_cells(row, realistic) for row in rows))
    ]


def _cells(row: Row, realistic: bool) -> tuple[str, ...]:
    if row.limit is None:
        target, holds = "", ""
    else:
        target = "0" if row.limit == 0 else f"<= {row.limit:.3g}"
        holds = "holds" if row.holds else "missed"
        if not realistic and row.kind != "count":
            holds = "not judged"
    ratio = f"{row.ratio:.3g} of {row.ratio_of}" if row.ratio_of else f"{row.ratio:.3g}"
    return row.name, row.ours, row.peer, ratio, target, holds, row.note


def _machine(device: str) -> str:
    import psutil
    import torch

    where = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    on = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return f"{on}, {where}, {memory}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
