"""What a file is, from its first bytes: for the message when it is not what its name says."""

from __future__ import annotations

SAFETENSORS = "a safetensors file"
PICKLE = "a Python pickle"
ZIP = "a PyTorch pickle or zip archive"

_HTML = "an HTML page (a download that needed a login, or a web page saved by mistake)"
_SIGNATURES = (
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run 'git lfs pull', or download it again)"),
    (b"pk\x03\x04", ZIP),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"gguf", "a GGUF file"),
)
START = 64  # bytes that :func:`describe` wants


def describe(start: bytes) -> str | None:
    """Names the kind of a file; None where its first bytes tell nothing.

    Args:
        start: the first bytes of the file.
    """
    # a safetensors header begins with a brace; the length before it may look like any of the others
    if start[8:9] == b"{":
        return SAFETENSORS
    text = start.lstrip().lower()
    return next((kind for magic, kind in _SIGNATURES if text.startswith(magic)), None)
