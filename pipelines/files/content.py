"""What a file is, from its first bytes: for the message when it is not what its name says."""

from __future__ import annotations

SAFETENSORS = "a safetensors file"
PICKLE = "a Python pickle"
ZIP = "a PyTorch pickle or zip archive"

_INSTEAD = "a server's answer instead of the file; download it again, logged in where its page asks for that"
_HTML = "an HTML page (a download that needed a login, or a web page saved by mistake)"
_JSON = f"a JSON text ({_INSTEAD})"
_SIGNATURES = (
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"<head", _HTML),
    (b"<body", _HTML),
    (b"<?xml", f"an XML text ({_INSTEAD})"),
    (b"<error", f"an XML text ({_INSTEAD})"),
    (b"<", f"a text of the web ({_INSTEAD})"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run 'git lfs pull', or download it again)"),
    (b"pk\x03\x04", ZIP),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"gguf", "a GGUF file"),
    (b"\x1f\x8b", f"compressed with gzip (unpack it; or {_INSTEAD})"),
    (b"\x28\xb5\x2f\xfd", f"compressed with zstd (unpack it; or {_INSTEAD})"),
    (b"bzh", "compressed with bzip2; unpack it"),
    (b"\xfd7zxz", "compressed with xz; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"rar!", "a RAR archive; unpack it"),
    (b"%pdf", "a PDF document"),
    (b"\x89png", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"riff", "a picture or a sound (RIFF)"),
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(32, 127)) + bytes(range(128, 256)))
START = 64  # bytes that :func:`describe` wants


def describe(start: bytes) -> str | None:
    """Names the kind of a file; None where its first bytes tell nothing.

    Args:
        start: the first bytes of the file.
    """
    # a safetensors header begins with a brace; the length before it may look like any of the others
    if start[8:9] == b"{" and not any(start[5:8]):
        return SAFETENSORS
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            text = start[len(mark) :].decode(encoding, errors="ignore")
            return describe(text.encode()) or f"a text ({_INSTEAD})"
    text = start.lstrip().lower()
    found = next((kind for magic, kind in _SIGNATURES if text.startswith(magic)), None)
    if found is None and text[:1] in (b"{", b"["):
        return _JSON
    # the length before a header always has zeros
    if found is None and len(start) >= 8 and all(byte in _PRINTABLE for byte in start):
        return f"a text ({_INSTEAD})"
    return found
