"""Children that probe a file, as copies of a process with the libraries loaded, for tests that open hundreds of files in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxspect.converters.sandbox.child import Answer, Here, Process
from onnxspect.converters.sandbox.guard import GuardLimits
from onnxspect.converters.sandbox.pool import WarmPool


class WarmLauncher:
    """A `child.Launcher`. Each file still meets a locked-in process of its own; what is saved is a second of imports a file.

    Commands in processes of their own, and the tests of the guard, start their children as users do.
    """

    JOB = "probe"

    def __init__(self) -> None:
        self._pool = WarmPool(self.JOB, GuardLimits(600.0, 1 << 40))

    def start(self, job: str, folder: Path, environment: Mapping[str, str]) -> Process:
        return _Copy(self._pool) if job == self.JOB and not environment else Here().start(job, folder, environment)

    def close(self) -> None:
        self._pool.__exit__()


class _Copy:
    def __init__(self, pool: WarmPool) -> None:
        self._pool = pool

    def tell(self, message: Mapping[str, Any]) -> None:
        """Nothing has to be loaded ahead."""

    def answer(self, message: Mapping[str, Any], _seconds: float) -> Answer:
        said = self._pool._ask(json.dumps(message).encode() + b"\n")
        assert said is not None, "the pool's process ended"
        return Answer(int(said["code"]), bool(said["timed_out"]), "")

    def close(self) -> None:
        """It has ended."""
