"""What a worker's process runs first: it has no pack yet. Nothing here may need one when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def station() -> type:
    """The class of a worker's actor. It is local to this function, so that it travels as code and not by its name."""

    class Station:
        def __init__(self) -> None:
            self._worker: Any = None
            self._doing: Any = None

        def arrive(self, root: str, environment: Mapping[str, str], ticket: Mapping[str, Any]) -> dict[str, Any]:
            """Loads the pack and opens the job; plain values, with ``problem`` or with ``passport``."""
            import importlib
            import importlib.util
            import os
            import socket
            import sys
            from pathlib import Path

            about = {"node": socket.gethostname(), "pid": os.getpid()}
            # these choose kernels, and are read when torch is imported
            os.environ.update(environment)
            path = Path(root) / "tasks.py"
            if not path.is_file():
                return about | {"problem": f"the pack is not in {root} there. Put it into the same folder everywhere"}
            spec = importlib.util.spec_from_file_location("tasks", path)
            assert spec is not None and spec.loader is not None
            tasks = importlib.util.module_from_spec(spec)
            sys.modules["tasks"] = tasks
            spec.loader.exec_module(tasks)
            tasks.load_pack()
            errors = importlib.import_module(f"{tasks.PACKAGE}.pipelines.errors")
            try:
                worker = importlib.import_module(f"{tasks.PACKAGE}.headless.cluster.worker")
                self._doing = worker.Doing()
                ticket_type = importlib.import_module(f"{tasks.PACKAGE}.headless.cluster.ticket").Ticket
                self._worker = worker.ReplayWorker(ticket_type(**ticket), self._doing)
                return about | {"passport": self._worker.passport()}
            except errors.AITKError as error:
                return about | {"problem": str(error)}
            except ImportError as error:
                return about | {"problem": f"its Python lacks what the pack needs: {error}"}

        def now(self) -> tuple[str, int]:
            return ("", 0) if self._doing is None else self._doing.now()

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(self._worker, method)(*arguments)

    return Station
