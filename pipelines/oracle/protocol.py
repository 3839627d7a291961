"""All that is assumed of AI Toolkit's inference engine: routes, keys, frames, and what its LoRA loader takes.

Read in ostris/ai-toolkit, extensions_built_in/inference_engine/ (README.md at 449488f6; server.py and
InferenceEngine.py at 6e1b39c7; engine.py and protocol.py at 24916ec0; registry.py at 2fa0bd87) and
toolkit/inference_lora.py at 66292ac8. Never run against the engine itself: what it says beyond this is reported as not
understood.

=========================  ===========================================================================================
``GET /health``            without a token: ``ok``, ``device``, ...
``GET /models``            ``archs``: a list of ``arch``, ``modality``, ``model``, ``sample``, ...
``POST /generate``         ``{model, sample, stream}``; answers with frames and the header ``X-Request-Id``
``POST /cancel/{id}``      the first state cancelled when the connection was dropped, later ones do not
``POST /assets?name=``     a raw file; answers ``path``, by which a sample names its control image
``GET /outputs/{relpath}`` a result's file, of ``outputs/<request id>/``
=========================  ===========================================================================================

A frame is a u32 header's length, a JSON header in UTF-8, a u64 payload's length and the payload, little endian.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OracleError

STATES = "the states from 449488f6 to 2fa0bd87"
HEALTH, MODELS, GENERATE, CANCEL, ASSETS, OUTPUTS = (
    "/health",
    "/models",
    "/generate",
    "/cancel/",
    "/assets",
    "/outputs/",
)
TOKEN_HEADER = "X-Engine-Token"
REQUEST_ID_HEADER = "X-Request-Id"
# no tensors of steps: nobody looks at them, and they are large
STREAM = {"latents": "none"}
# the only way that gives the same picture twice: a merge is rounded at random
LORA_MODE = "hook"
# without these in a request, the engine quantises by a registry and to another type than a training does
QUANTISATION = ("quantize", "qtype", "quantize_te", "qtype_te")
DTYPE = "bfloat16"  # unless the engine's own job sets engine.dtype
# names of dtypes as the engine may spell what it loaded in
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
ENTRY_KEYS = {"arch", "modality", "model", "sample", "needs_control_image", "size_locked"}
FRAMES = {"start", "status", "progress", "latent", "result", "error", "end"}
# what toolkit/inference_lora.py reads; of DoRA it takes the two matrices and leaves the magnitude
TAKEN_KEY = re.compile(
    r"\.(?:lora_(?:A|B|down|up)(?:\.default)?\.weight|lora_(?:A|B)|alpha|diff|diff_b|lokr_(?:w1|w2|w1_a|w1_b|w2_a|w2_b|t2))$"
)
SKIPPED_KEYS = {"hada_": "LoHa", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"}

_LONGEST_HEADER = 1 << 20  # bytes
_LONGEST_PAYLOAD = 1 << 28  # bytes: latents of a long video
_PIECE = 1 << 16


class Misunderstanding(OracleError):
    """The engine, or whatever runs at its address, does not speak as this module says."""


@dataclass(frozen=True)
class Frame:
    """One frame of a stream, without its payload.

    Attributes:
        type: e.g. ``progress``.
        header: all of it.
    """

    type: str
    header: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The first of these that is a text; empty where none is."""
        return next((self.header[name] for name in names if isinstance(self.header.get(name), str)), "")


def frames(read: Callable[[int], bytes]) -> Iterator[Frame]:
    """The frames of a stream to its end.

    Args:
        read: gives at most so many bytes, fewer only at the end of the stream.

    Raises:
        Misunderstanding: what comes is no frame, or the stream ends within one.
    """
    while True:
        start = read(4)
        if not start:
            return
        (length,) = struct.unpack("<I", _whole(start, 4))
        if length > _LONGEST_HEADER:
            raise Misunderstanding(
                f"The engine announces a frame's header of {length:,} bytes, where {_LONGEST_HEADER:,} are the most: "
                "what comes is no stream of frames."
            )
        header = parse_object(_whole(read(length), length), "a frame's header")
        (payload,) = struct.unpack("<Q", _whole(read(8), 8))
        if payload > _LONGEST_PAYLOAD:
            raise Misunderstanding(
                f"The engine announces a frame's payload of {payload:,} bytes, where {_LONGEST_PAYLOAD:,} are the most."
            )
        while payload:
            piece = read(min(_PIECE, payload))
            _whole(piece, min(_PIECE, payload))
            payload -= len(piece)
        kind = header.get("type")
        if not isinstance(kind, str):
            raise Misunderstanding("The engine sends a frame without a type.")
        yield Frame(kind, header)


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object; raises Misunderstanding where it is none, ``what`` naming it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Misunderstanding(f"The engine sends as {what} what is no JSON object.")
    return value


def _whole(piece: bytes, length: int) -> bytes:
    if len(piece) < length:
        raise Misunderstanding(
            "The engine's stream ends within a frame: the engine was stopped, or the connection was."
        )
    return piece
