"""What a recording can say of the CPU kernels in force here.

A product of bfloat16 matrices has other bits on another CPU: oneDNN sums in another order with AVX2, AVX-512 or AMX and
on Arm, and so do torch's own kernels. Rounded to 8 bits, that is 1.7e-2 of a prediction. oneDNN can be told to take no
more than AVX-512, which is set for all tests (``KERNELS`` in tasks.py); nothing makes AVX-512 of less.
"""

from __future__ import annotations

import os

import torch

CAPABILITY = torch.backends.cpu.get_cpu_capability()
# how far torch.randn is from a recording: for AVX2 and AVX-512 torch has code of its own; without, as on Arm, 1.7e-6
NOISE = 0.0 if CAPABILITY.startswith("AVX") else 5e-6
# oneDNN's instruction sets with which the recorded bits were found again; the first is set for all tests
LIKE_THE_RECORDING = ("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16")


def why_unlike_the_recordings() -> str:
    """What differs, as the reason of a skipped test; nothing where the kernels are those of the recordings."""
    if "AVX512" not in CAPABILITY:
        return f"recorded in bfloat16 with AVX-512: torch uses {CAPABILITY} here"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "no limit")
    if limit.upper() not in LIKE_THE_RECORDING:
        return f"recorded in bfloat16 with ONEDNN_MAX_CPU_ISA={LIKE_THE_RECORDING[0]}: here it is {limit}"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return "recorded in bfloat16 with oneDNN, which is not used here"
    return ""
