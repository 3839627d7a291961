"""Weights in several files that are numbered: ``NAME-00001-of-00003.safetensors``, with a variant's name at either
end."""

from __future__ import annotations

import re

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})((?:\..+)?\.safetensors)")
MOST = 1 << 10  # files of one model; the largest have some hundreds


def shard_names(name: str) -> list[str]:
    """The names of all files that belong together, in order; empty where a name is not one of several.

    Args:
        name: of one of them.
    """
    match = _SHARD.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= MOST:
        return []
    return [f"{match[1]}-{number:05}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)]
