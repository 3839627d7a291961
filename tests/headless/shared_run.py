"""The command ``run`` in one of two processes of this CPU; arguments are those of the command.

diffusers asks torch for accelerators, of which a CPU has none; here it is told of one CPU device.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
tasks = importlib.import_module("tasks")
tasks.load_pack()

import torch  # noqa: E402

torch._C._get_accelerator = lambda *_: torch.device("cpu")
torch.accelerator.device_count = lambda: 1
sys.exit(tasks.run(sys.argv[1:]))
