"""Progress in a notebook: bars below the cell, drawn by the notebook itself, without a widget library.

rich's own bars need ipywidgets there. These are one HTML fragment that is replaced while the work goes on (IPython's
``display(..., display_id=True)``), which every notebook front end and a saved notebook can show.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from onnxspect.engine.durations import in_words
from onnxspect.engine.run import RunContext, Silent

#: Seconds between two drawings at least: a notebook keeps up with some ten a second.
INTERVAL = 0.1
#: Notices that stay visible.
MOST_NOTICES = 8


class Handle(Protocol):
    """A place in a notebook's output: what ``IPython.display.display`` returns for a display id."""

    def update(self, obj: Any) -> None:
        """Show `obj` there instead."""


@dataclass
class _Task:
    total: int
    done: int
    detail: str = ""


class NotebookProgress:
    """An observer that draws one bar a task below a notebook's cell.

    Args:
        display: puts an object into the notebook's output and returns the place; IPython's own by default.
        clock: seconds, for the interval between two drawings.
    """

    def __init__(
        self, display: Callable[[Any], Handle] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._display = display or _display
        self._clock = clock
        self._handle: Handle | None = None
        self._drawn = -INTERVAL
        self._tasks: dict[str, _Task] = {}
        self._notices: list[str] = []
        self._left = ""

    def time_left(self, seconds: float | None) -> None:
        """Shown below the bars from the next event on; None: not known any more."""
        self._left = "" if seconds is None else f"{in_words(seconds)} left"

    def notice(self, text: str) -> None:
        """One line above the bars."""
        self._notices = [*self._notices, text][-MOST_NOTICES:]
        self._draw(now=True)

    def start(self, task: str, total: int, done: int = 0) -> None:
        """A bar more."""
        self._tasks[task] = _Task(total, done)
        self._draw(now=True)

    def advance(self, task: str, detail: str = "") -> None:
        """Move the bar; drawn at most every INTERVAL seconds."""
        known = self._tasks.get(task)
        if known is not None:
            known.done += 1
            known.detail = detail
            self._draw(now=False)

    def finish(self, task: str) -> None:
        """Take the bar away."""
        self._tasks.pop(task, None)
        self._draw(now=True)

    def _draw(self, now: bool) -> None:
        if not now and self._clock() - self._drawn < INTERVAL:
            return
        self._drawn = self._clock()
        shown = Bars(
            tuple(self._notices),
            tuple((n, t.done, t.total, t.detail) for n, t in self._tasks.items()),
            self._left if self._tasks else "",
        )
        if self._handle is None:
            self._handle = self._display(shown)
        else:
            self._handle.update(shown)


@dataclass(frozen=True)
class Bars:
    """What is to be seen at a moment.

    Attributes:
        notices: lines.
        tasks: (name, done, total, detail) of every bar.
        left: how long the rest of everything takes, in words; "" where that is not known.
    """

    notices: tuple[str, ...]
    tasks: tuple[tuple[str, int, int, str], ...]
    left: str = ""

    def __repr__(self) -> str:
        rows = [f"{name} {done}/{total} {detail}".rstrip() for name, done, total, detail in self.tasks]
        return "\n".join([*self.notices, *rows, *([self.left] if self.left else [])])

    def _repr_html_(self) -> str:
        """The bars as ``<progress>`` elements; names and details are escaped, since class names are untrusted text."""
        lines = [f'<div style="opacity:0.6">{html.escape(n)}</div>' for n in self.notices]
        lines += [
            f'<div>{html.escape(name)} <progress value="{done}" max="{max(total, 1)}"></progress> {done}/{total} '
            f'<span style="opacity:0.6">{html.escape(detail)}</span></div>'
            for name, done, total, detail in self.tasks
        ]
        lines += [f'<div style="opacity:0.6">{html.escape(self.left)}</div>'] if self.left else []
        return "".join(lines)


def _display(shown: Any) -> Handle:
    from IPython.display import display  # type: ignore[import-not-found]  # there in every notebook, and only there

    handle: Handle = display(shown, display_id=True)
    return handle


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython is not imported to find out."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def watched() -> RunContext:
    """The run of a call that names none: seed 0, on the CPU; its progress is shown where the caller works in a notebook."""
    return RunContext(observer=NotebookProgress() if in_notebook() else Silent())
