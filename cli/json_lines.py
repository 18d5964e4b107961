"""Progress for programs: one JSON object a line on stderr."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field

from onnxspect.converters.stages import stage


@dataclass
class JsonLines:
    """An observer that writes what happens as ``{"event": ..., "seconds": ...}``, with `task`, `done`, `total`, `detail` or `text`.

    In a scan events have `left` too: the seconds that the rest will take, as far as can be told.

    Attributes:
        since: when it began; `seconds` counts from there.
    """

    since: float = field(default_factory=time.monotonic)
    _tasks: dict[str, tuple[int, int]] = field(default_factory=dict)
    _left: float | None = None

    def time_left(self, seconds: float | None) -> None:
        """Said with the next event; None: not known."""
        self._left = seconds

    def notice(self, text: str) -> None:
        """``{"event": "notice", "text": ...}``."""
        self._write("notice", text=text)

    def start(self, task: str, total: int, done: int = 0) -> None:
        """``{"event": "start", "task": ..., "done": ..., "total": ...}``."""
        stage(task)
        self._tasks[task] = (done, total)
        self._write("start", task=task, done=done, total=total)

    def advance(self, task: str, detail: str = "") -> None:
        """``{"event": "advance", ...}`` with how many are done now."""
        done, total = self._tasks.get(task, (0, 0))
        self._tasks[task] = (done + 1, total)
        self._write("advance", task=task, done=done + 1, total=total, detail=detail)

    def finish(self, task: str) -> None:
        """``{"event": "finish", "task": ...}``."""
        done, total = self._tasks.pop(task, (0, 0))
        self._write("finish", task=task, done=done, total=total)

    def _write(self, event: str, **facts: object) -> None:
        # ASCII alone: a name cannot say anything to a terminal through it.
        line = {"event": event, "seconds": round(time.monotonic() - self.since, 3)} | facts
        if self._left is not None:
            line["left"], self._left = round(self._left, 1), None
        print(json.dumps(line), file=sys.stderr, flush=True)
