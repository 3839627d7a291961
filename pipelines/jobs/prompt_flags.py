"""The flags that a sample's prompt may hold, such as ``a fox --w 640 --seed 7``.

The text is cut at every ``--``. What stands first is the prompt; each further piece is a flag up to its first space,
and the flag's value. Pieces with an unknown flag are dropped.

Source: AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string (27a03a91).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _floats(text: str) -> list[float]:
    return [float(one) for one in text.split(",")]


# flag -> the setting, and how its value is read; AI Toolkit dies of a value that cannot be read, whatever it is for
_FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "p2": ("prompt_2", str),
    "n": ("negative_prompt", str),
    "n2": ("negative_prompt_2", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "seed": ("seed", int),
    "l": ("guidance_scale", float),
    "cfg": ("guidance_scale", float),
    "s": ("steps", int),
    "steps": ("steps", int),
    "m": ("multiplier", float),
    "network_multiplier": ("multiplier", float),
    "gr": ("guidance_rescale", float),
    "a": ("adapter_conditioning_scale", float),
    "ref": ("refiner_start_at", float),
    "ev": ("extra_values", _floats),
    "extra_values": ("extra_values", _floats),
    "frames": ("num_frames", int),
    "num_frames": ("num_frames", int),
    "fps": ("fps", int),
    "ctrl_img": ("ctrl_img", str),
    "ctrl_idx": ("ctrl_idx", int),
}


def split_prompt(text: str) -> tuple[str, dict[str, Any]]:
    """The prompt without its flags, and the settings that they make; of a flag given twice the last.

    Raises:
        ValueError: a flag's value is no number where it has to be one.
    """
    prompt, *pieces = text.strip().split("--")
    found: dict[str, Any] = {}
    for piece in pieces:
        flag = piece.split(" ", 1)[0].strip()
        # the value begins as many characters in as the stripped flag has: after a line break that is too early
        value = piece[len(flag) :].strip()
        if flag in _FLAGS:
            name, read = _FLAGS[flag]
            found[name] = read(value)
    return prompt.strip(), found
