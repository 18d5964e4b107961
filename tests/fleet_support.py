"""Support for tests of many models: an executor that carries commands out in this process, one after the other, for real.

What a command prints on stderr is what it says, as for one in a process of its own; only the locking in is left to the tests of
processes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from onnxspect.cli.main import run
from onnxspect.engine.fleet.executor import Ended, Job


@dataclass
class InThisProcess:
    """Attributes:
    slots: commands that may be begun before one of them is carried out.
    before: asked for every command; an Ended stands for it, and it is not carried out.
    done: all that were begun, in order.
    """

    slots: int = 1
    before: Callable[[Job], Ended | None] = lambda _: None
    done: list[Job] = field(default_factory=list)
    _waiting: list[Job] = field(default_factory=list)

    def start(self, job: Job) -> None:
        assert len(self._waiting) < self.slots
        self._waiting.append(job)
        self.done.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Ended]]:
        if not self._waiting:
            return []
        job = self._waiting.pop(0)
        ended = self.before(job)
        if ended is None:
            said, out = io.StringIO(), io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
                ended = Ended(run(list(job.arguments)), said.getvalue(), 1.0)
        return [(job, ended)]

    def stop(self) -> None:
        self._waiting.clear()

    def kinds(self) -> list[str]:
        """What was begun: the name of a model, or "references"."""
        return ["references" if j.model is None else j.model.stem for j in self.done]
