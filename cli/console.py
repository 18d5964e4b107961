"""What a person sees: the report on stdout and nothing else there; progress and notices on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from onnxspect.converters.errors import writing
from onnxspect.converters.stages import stage
from onnxspect.converters.text import visible
from onnxspect.engine.durations import in_words

#: Width of tables where stdout is no terminal.
PLAIN_WIDTH = 120

#: As errors call it.
STDOUT = Path("standard output")


def _terminal(name: str) -> bool | None:
    """Whether a stream ends on a terminal; of a worker, whose streams are pipes, the supervisor knows it. None: look."""
    terminals = os.environ.get("ONNXSPECT_TERMINAL")
    return None if terminals is None else name in terminals.split(",")


class _Plain(Console):
    """A console that reads no markup in texts, and lets nothing through that a terminal would obey."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does it; a text is one line."""
        super().print(*(Text(visible(o)) if isinstance(o, str) else o for o in objects), **options)


err = _Plain(
    stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False, force_terminal=_terminal("stderr")
)


@dataclass(frozen=True)
class _Door:
    """What rich makes of a table or text, with the characters escaped that a terminal would obey; its own styles pass."""

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment("\n".join(map(visible, segment.text.split("\n"))), segment.style)


def show(content: RenderableType) -> None:
    """Print a table or text on stdout."""
    terminal = _terminal("stdout")
    width = None if (sys.stdout.isatty() if terminal is None else terminal) else PLAIN_WIDTH
    with writing(STDOUT):
        Console(highlight=False, width=width, force_terminal=terminal, markup=False, emoji=False).print(_Door(content))


def show_raw(text: str) -> None:
    """Print a document on stdout: JSON and HTML as they are, other text line by line without what a terminal would obey.

    Letters that stdout's encoding does not have are escaped as the kind of document does it.
    """
    if text.startswith(("{", "[")):
        text = _encodable(text, lambda c: json.dumps(c)[1:-1])
    elif text.startswith("<"):
        text = _encodable(text, lambda c: f"&#{ord(c)};")
    else:
        text = "\n".join(map(visible, text.split("\n")))
    with writing(STDOUT):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


def _encodable(text: str, escape: Callable[[str], str]) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(c if _in(c, encoding) else escape(c) for c in text)
    return text


def _in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Lines:
    """A task that is reported in lines: how far it is, and how long the rest will take at the speed so far."""

    total: int
    done: int
    since: float
    here: int = 0

    def advanced(self, in_all: float | None) -> str:
        """One more unit: " 3/10, 12 s left"; with the time that is left of everything where that is known."""
        self.done += 1
        self.here += 1
        left = (time.monotonic() - self.since) / self.here * (self.total - self.done)
        said = ""
        if in_all is not None:
            said = f", {in_words(in_all)} left in all"
        elif left >= 1:
            said = f", {left:.0f} s left"
        return f" {self.done}/{self.total}{said}"


class _Remaining(TimeRemainingColumn):
    """The time that is left of everything where that is known, else of the task."""

    def __init__(self, in_all: Callable[[], float | None]) -> None:
        super().__init__()
        self._in_all = in_all

    def render(self, task: Task) -> Text:
        """As rich draws it."""
        seconds = self._in_all()
        return (
            super().render(task) if seconds is None else Text(f"{in_words(seconds)} left", style="progress.remaining")
        )


class Progressing:
    """An observer that draws progress bars on stderr; plain lines where stderr is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._plain: dict[str, _Lines] = {}
        self._ends: float | None = None

    def time_left(self, seconds: float | None) -> None:
        """Of everything: shown with the next event, and counted down until it is said again; None: not known any more."""
        self._ends = None if seconds is None else time.monotonic() + seconds

    def _in_all(self) -> float | None:
        """Seconds that are left of everything; None where that was not said."""
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def notice(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            err.print(text, style="dim")

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Show a bar."""
        stage(task)
        if self._quiet:
            return
        if not err.is_terminal:
            err.print(f"{task}: {total} to do" + (f", {done} done before" if done else ""))
            self._plain[task] = _Lines(total, done, time.monotonic())
            return
        if self._bars is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Remaining(self._in_all),
                TextColumn("{task.fields[detail]}", style="dim", markup=False),
            )
            self._bars = Progress(*columns, console=err, transient=True)
            self._bars.start()
        self._tasks[task] = self._bars.add_task(visible(task), total=total, completed=done, detail="")

    def advance(self, task: str, detail: str = "") -> None:
        """Move the bar."""
        if self._quiet:
            return
        if self._bars is None:
            at = self._plain.get(task)
            err.print(f"{task}{'' if at is None else at.advanced(self._in_all())}: {detail}", style="dim")
        elif task in self._tasks:
            self._bars.update(self._tasks[task], advance=1, detail=visible(detail))

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
