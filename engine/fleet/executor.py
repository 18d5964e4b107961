"""Who carries out commands: processes on this machine (local.py), or a Ray cluster (on_ray.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onnxspect.converters.text import printable

#: A status of no process: whoever carried the command out is gone (its node, its supervisor), and it may be tried again.
LOST = -1
#: How a command says that a process of its was killed from outside: its worker (cli/supervisor.py), the child that opens a file, or who
#: starts that (converters/sandbox).
KILLED = ("the worker was killed", "the child process was killed", "the process that starts children has ended")
#: Of what a command says, so much of the end is kept, in bytes.
SAID = 8000


@dataclass(frozen=True)
class Job:
    """One command to be carried out.

    Attributes:
        key: names it among the others.
        arguments: of onnxspect.
        out: the folder that it fills, and the only one that it writes to.
        model: that it opens; None for references.
        reads: samples and other files that the user named.
        shelf: finished references that it may read; None where it has none.
        request: the file that says which references to make.
    """

    key: str
    arguments: tuple[str, ...]
    out: Path
    model: Path | None = None
    reads: tuple[Path, ...] = ()
    shelf: Path | None = None
    request: Path | None = None


@dataclass(frozen=True)
class Ended:
    """What became of a command.

    Attributes:
        status: its exit status; negative for the signal that ended it, or LOST.
        said: the end of what it wrote to stderr.
        seconds: of wall time.
    """

    status: int
    said: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside, so that it may be tried again."""
        return self.status < 0 or any(said in line for line in self._own() for said in KILLED)

    @property
    def cause(self) -> str:
        """What stopped it, in a line."""
        own = self._own()
        said = own[-1].removeprefix("onnxspect: ") if own else ""
        lines = [line for line in self.said.splitlines() if line.strip()]
        return printable(
            said or (lines[-1].removeprefix("Error: ") if lines else f"ended with status {self.status}"), 400
        )

    @property
    def hint(self) -> str:
        """What it said that one may do."""
        hints = [line.strip().removeprefix("hint: ") for line in self.said.splitlines() if line.startswith("  hint: ")]
        return printable(hints[-1], 400) if hints else ""

    @property
    def said_why(self) -> bool:
        """Whether it said itself what stopped it."""
        return bool(self._own())

    def _own(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("onnxspect: ")]


class Executor(Protocol):
    """Carries out several commands at a time."""

    @property
    def slots(self) -> int:
        """How many."""

    def start(self, job: Job) -> None:
        """Begin with one; there is a free slot."""

    def wait(self, seconds: float) -> list[tuple[Job, Ended]]:
        """Those that have ended; it waits at most so long for the first."""

    def stop(self) -> None:
        """End all that are running, and return when they have."""
