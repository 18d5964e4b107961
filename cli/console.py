"""What a person sees: the report on stdout and nothing else there; progress and notices on stderr."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onnxspect.converters.errors import writing
from onnxspect.converters.stages import stage

#: Width of tables where stdout is no terminal.
PLAIN_WIDTH = 120

#: As errors call it.
STDOUT = Path("standard output")


def _terminal(name: str) -> bool | None:
    """Whether a stream ends on a terminal; of a worker, whose streams are pipes, the supervisor knows it. None: look."""
    told = os.environ.get("ONNXSPECT_TERMINAL")
    return None if told is None else name in told.split(",")


err = Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=_terminal("stderr"))


def show(content: RenderableType) -> None:
    """Print a table or text on stdout."""
    terminal = _terminal("stdout")
    width = None if (sys.stdout.isatty() if terminal is None else terminal) else PLAIN_WIDTH
    with writing(STDOUT):
        Console(highlight=False, width=width, force_terminal=terminal).print(content)


def show_raw(text: str) -> None:
    """Print a document on stdout exactly as it is."""
    with writing(STDOUT):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


@dataclass
class _Plain:
    """A task that is reported in lines: how far it is, and how long the rest will take at the speed so far."""

    total: int
    done: int
    since: float
    here: int = 0

    def advanced(self) -> str:
        """One more unit: " 3/10, 12 s left"."""
        self.done += 1
        self.here += 1
        left = (time.monotonic() - self.since) / self.here * (self.total - self.done)
        return f" {self.done}/{self.total}" + (f", {left:.0f} s left" if left >= 1 else "")


class Progressing:
    """An observer that draws progress bars on stderr; plain lines where stderr is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._plain: dict[str, _Plain] = {}

    def notice(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            err.print(escape(text), style="dim")

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Show a bar."""
        stage(task)
        if self._quiet:
            return
        if not err.is_terminal:
            err.print(f"{task}: {total} to do" + (f", {done} done before" if done else ""))
            self._plain[task] = _Plain(total, done, time.monotonic())
            return
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[detail]}"),
            )
            self._bars = Progress(*columns, console=err, transient=True)
            self._bars.start()
        self._tasks[task] = self._bars.add_task(task, total=total, completed=done, detail="")

    def advance(self, task: str, detail: str = "") -> None:
        """Move the bar."""
        if self._quiet:
            return
        if self._bars is None:
            at = self._plain.get(task)
            err.print(f"{task}{'' if at is None else at.advanced()}: {escape(detail)}", style="dim")
        elif task in self._tasks:
            self._bars.update(self._tasks[task], advance=1, detail=escape(detail))

    def finish(self, task: str) -> None:
        """Take the bar away; the last one takes the display with it."""
        self._plain.pop(task, None)
        if self._bars is not None and task in self._tasks:
            self._bars.remove_task(self._tasks.pop(task))
            if not self._tasks:
                self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
