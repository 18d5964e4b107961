"""What a command has written and left: the secret, controls that a terminal obeys, marks of programs that ran, rubbish."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from hostile.case import ELEMENT, FORGED, RAN
from hostile.place import Place

#: What people read: there is no control character in it but line ends and tabs. (Pictures, models and arrays are bytes.)
_TEXTS = ("stdout", "stderr", ".html", ".json", ".sarif", ".txt", ".md", ".xml", ".csv")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def problems(place: Place, work: Path, folders: Mapping[str, Path]) -> list[str]:
    """With what it wrote and left."""
    found = []
    for path in [*files(folders["said"]), *files(folders["out"]), *files(folders["here"])]:
        data = path.read_bytes()
        if form := place.canary.found_in(data):
            found.append(f"the secret is in {path.relative_to(work)} ({form})")
        if path.name.endswith(_TEXTS):
            found += [f"{path.relative_to(work)}: {p}" for p in obeyed(data, page=path.suffix == ".html")]
    said = (folders["said"] / "stderr").read_bytes()
    for words in (b"unexpected failure", b"Traceback", b"fault of onnxspect"):
        if words in said:
            found.append(f"it says {words.decode()!r}: {said[-600:].decode(errors='replace')}")
    found += [f"left in its temporary folder: {p.name}" for p in folders["temporary"].iterdir()]
    found += [f"left where it was started: {p.name}" for p in folders["here"].iterdir()]
    found += [
        f"left beside its outputs: {p.name}"
        for p in folders["out"].rglob("*")
        if ".onnxspect-" in p.name or ".part" in p.name
    ]
    for marker in [*place.programs.glob(f"{RAN}-*"), *(p for p in (Path("/tmp") / RAN,) if p.exists())]:
        found.append(f"something was run: {marker.name}")
        marker.unlink()
    for top in work.iterdir():
        if top.name == RAN or any(p.name == RAN for p in top.iterdir()):
            found.append(f"something was run in {top.name}")
    return found


def obeyed(data: bytes, *, page: bool) -> list[str]:
    """What a terminal or a browser would obey."""
    text = data.decode("utf-8", "replace")
    found = [f"a control character: {c!r}" for c in sorted(set(_CONTROLS.findall(text)))]
    if any(line.lstrip().startswith(FORGED) for line in text.splitlines()):
        found.append("a line of a name's own")
    if page and ELEMENT in text:
        found.append("an element of a name's own")
    return found


def files(folder: Path) -> list[Path]:
    """Every file below a folder, behind links too."""
    return [Path(top) / name for top, _, names in os.walk(folder) for name in names if (Path(top) / name).is_file()]
