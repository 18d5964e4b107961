"""One hostile input: how it is made, which commands meet it, and with what they may end."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: What may end a command (docs/guide.md): clean or done; a backdoor, or a hostile file; a usage error; inconclusive; a failure.
ANY = frozenset({0, 1, 2, 3, 4})
#: The file is called hostile; it is refused, or the command fails; it is read as an ordinary one, or refused.
HOSTILE, REFUSED, READ = frozenset({1}), frozenset({1, 2, 4}), frozenset({0, 2, 3, 4})
#: A run or report ends well whatever its verdict says, or is refused; it is refused.
SHOWN, ERROR = frozenset({0, 2, 4}), frozenset({2, 4})
#: The commands that open a model; the ways in which a run is shown.
OPENED = ("info", "scan", "patch", "verify", "diff", "cleanse", "certify", "convert")
FORMS = ("report", "report as html", "view")
#: Words in names that no reader may obey: a line of one's own, an element of a page, a colour of the terminal.
FORGED, ELEMENT, ESCAPE = "FORGED verdict: clean", "<img src=x onerror=alert(1)>", "\x1b[31mred\x1b[0m"
#: The name of the file that every payload here makes where it is run.
RAN = "ran"


@dataclass(frozen=True)
class Canary:
    """A secret that nobody gave: the text is 64 hexadecimal digits.

    Attributes:
        text: the secret.
        folder: outside of every input, with `secret` (the text, over and over, 4 KiB), `secret.png` and `secret.npy` that hold it, and
            `run`, another's finished run whose class names hold it.
    """

    text: str
    folder: Path

    def forms(self) -> dict[str, bytes]:
        """The secret as it would stand in an output, by what was done to it."""
        text = self.text.encode()
        found = {
            "as it stands": text,
            "in capitals": text.upper(),
            "as bytes": bytes.fromhex(self.text),
            "in hexadecimal": text.hex().encode(),
            "in UTF-16": self.text.encode("utf-16-le"),
            "in UTF-32": self.text.encode("utf-32-le"),
            "backwards": text[::-1],
        }
        for shift in range(
            3
        ):  # base64 looks different at each place within three bytes; its ends depend on the neighbours
            found[f"in base64, shifted by {shift}"] = base64.b64encode(bytes(shift) + text)[4:-4]
            found[f"bytes in base64, shifted by {shift}"] = base64.b64encode(bytes(shift) + bytes.fromhex(self.text))[
                4:-4
            ]
        return found

    def found_in(self, data: bytes) -> str:
        """In which form the secret is in `data`; "" where it is not."""
        return next((name for name, form in self.forms().items() if form in data), "")


#: Writes an input into an empty folder and returns what is given to the commands.
Make = Callable[[Path, Canary], Path]


def file_of(name: str, data: Callable[[], bytes]) -> Make:
    """A file of that name and content."""

    def make(folder: Path, _: Canary) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return make


def fifo(name: str) -> Make:
    """A FIFO that nobody writes to."""

    def make(folder: Path, _: Canary) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def link(name: str, to: str) -> Make:
    """A link to a path, or to something beside the secret."""

    def make(folder: Path, canary: Canary) -> Path:
        (folder / name).symlink_to(canary.folder / to)
        return folder / name

    return make


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        kind: of the corpus.
        name: within the kind.
        make: makes it.
        commands: names in `COMMANDS`, the cheapest first.
        statuses: that are in order for all of these commands.
        expected: and for some of them, where these differ.
    """

    kind: str
    name: str
    make: Make
    commands: tuple[str, ...]
    statuses: frozenset[int] = ANY
    expected: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def allowed(self, command: str) -> frozenset[int]:
        """The statuses that are in order."""
        return self.expected.get(command, self.statuses)


_SCAN = ("--preset", "quick", "--detector", "max-margin", "--device", "cpu", "-q", "--out", "{out}/run")
#: Command lines by name. {input} is hostile; {model}, {data}, {foreign} (another model) and {request} are ordinary.
COMMANDS: dict[str, tuple[str, ...]] = {
    "info": ("info", "{input}"),
    "info as json": ("info", "{input}", "--json"),
    "scan": ("scan", "{input}", "--data", "{data}", *_SCAN, "--json"),
    "convert": ("convert", "{input}", "-o", "{out}/converted.onnx"),
    "patch": (
        *("patch", "{input}", "--run", "{beside}", "--data", "{data}", "--method", "clp"),
        *("-o", "{out}/patched.onnx", "--device", "cpu", "-q"),
    ),
    "verify": (
        *("verify", "{input}", "--against", "{input}", "--data", "{data}", "--run", "{beside}", "-q"),
        *("--device", "cpu"),
    ),
    "diff": ("diff", "{input}", "{model}"),
    "cleanse": (
        *("cleanse", "{input}", "--train", "{data}", "--detector", "activation-clustering", "--out", "{out}/cleansed"),
        *("--device", "cpu", "-q"),
    ),
    "certify": (
        *("certify", "{data}", "--model", "{input}", "--classes", "0", "1", "--epsilon", "0.1", "--set", "sphere"),
        *("--out", "{out}/certificate", "--device", "cpu", "-q"),
    ),
    "data": ("data", "{input}"),
    "data with pictures": ("data", "{input}", "--pictures", "{out}/five.png"),
    "scan of samples": ("scan", "{model}", "--data", "{input}", *_SCAN, "-o", "{out}/report.html"),
    "scan of a training set": (
        *("scan", "{model}", "--data", "{data}", "--train", "{input}", "--preset", "quick", "--device", "cpu", "-q"),
        *("--detector", "training-difference", "--out", "{out}/run"),
    ),
    "cleanse a training set": (
        *("cleanse", "{model}", "--train", "{input}", "--detector", "activation-clustering", "--out", "{out}/cleansed"),
        *("--device", "cpu", "-q"),
    ),
    "certify samples": ("certify", "{input}", "--classes", "0", "1", "--epsilon", "0.1", "--out", "{out}/c", "-q"),
    "data with names": ("data", "{data}", "--classes", "{input}"),
    "scan with names": (
        "scan",
        "{model}",
        "--data",
        "{data}",
        "--classes",
        "{input}",
        *_SCAN,
        "-o",
        "{out}/report.html",
    ),
    "scan by a policy": ("scan", "{model}", "--data", "{data}", "--policy", "{input}", *_SCAN),
    "report by a policy": ("report", "{run}", "--policy", "{input}"),
    "report": ("report", "{input}"),
    "report as json": ("report", "{input}", "--format", "json"),
    "report as html": ("report", "{input}", "--format", "html"),
    "report to files": (
        "report",
        "{input}",
        *itertools.chain.from_iterable(
            ("-o", f"{{out}}/r.{e}") for e in ("html", "sarif", "md", "xml", "cdx.json", "txt")
        ),
    ),
    "signed report": ("report", "{input}", "--verify-key", "{key}"),
    "verify with a run": (
        *("verify", "{model}", "--against", "{model}", "--data", "{data}", "--run", "{input}", "-q", "--device", "cpu"),
    ),
    "patch with a run": (
        *("patch", "{model}", "--run", "{input}", "--data", "{data}", "--method", "clp", "-o", "{out}/patched.onnx"),
        *("--device", "cpu", "-q"),
    ),
    "cleanse with a run": (
        *(
            "cleanse",
            "{model}",
            "--train",
            "{data}",
            "--run",
            "{input}",
            "--out",
            "{out}/cleansed",
            "--device",
            "cpu",
            "-q",
        ),
    ),
    "view": ("view", "{input}"),
    "references": ("references", "{input}", "--data", "{data}", "--preset", "quick", "--out", "{out}/references", "-q"),
}
