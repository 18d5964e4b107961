"""Reports of every verdict and size, without a search, and what reads the pages that are drawn from them."""

from __future__ import annotations

import base64
import copy
import hashlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from run_folder_support import DETECTOR, whole_report

from onnxspect.engine.report import patch_document
from onnxspect.engine.report.pictures import save_image
from onnxspect.engine.stored_report import checked, digest

Report = dict[str, Any]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="https://example.com/x">',
    "[bold red]x[/] {0} `x` [a](https://example.com) | # ${{ x }}",
    "\x1b[2Jgone\n\u202e",
)
FOUND = {
    "class": 2,
    "detector": DETECTOR,
    "form": "mask",
    "source": None,
    "shared": False,
    "held_out": 120,
    "held_out_success": 0.97,
    "size": [8, 8],
    "box": {"top": 6, "left": 6, "height": 2, "width": 2},
    "changed": 0.0625,
}


def report_of(verdict: str, hostile: bool = False, **changes: Any) -> Report:
    """A whole report of four classes, with all that this version writes; with `hostile` names everywhere."""
    report = whole_report("ab" * 32, verdict, finished="2026-01-31T12:00:00Z", hidden=[], found=[], notes=[])
    report["notes"] = [HOSTILE[2] if hostile else "3 images have an alpha channel: it is dropped"]
    if report["targets"]:
        report["found"] = [copy.deepcopy(FOUND)]
        report["classes"][2]["kind"] = "a local patch"
    for row in report["classes"]:
        row["reference"] = {DETECTOR: 11.0}
    if hostile:
        for row, name in zip(report["classes"], HOSTILE, strict=True):
            row["name"] = name
        report["model"]["path"] = "-o\n<b>.onnx"
        report["reasons"] = [HOSTILE[0], HOSTILE[3]]
    return finished(report | changes)


def finished(report: Report) -> Report:
    """The same with the digest of what is in it."""
    report["digest"] = digest(report)
    return report


def of_many_classes(n: int = 1000, target: int = 417) -> Report:
    """A report of so many classes with long names, one of them named, which has the least statistic."""
    report = report_of("backdoored")
    rng = np.random.default_rng(0)
    rows = []
    for k in range(n):
        row = copy.deepcopy(report["classes"][2 if k == target else 0])
        row |= {"index": k, "name": f"n{rng.integers(10**8):08d} a name, somewhat longer than others"}
        if k != target:
            row["log10_p"] = -float(rng.random()) * 0.2
            row["p_value"] = 10 ** row["log10_p"]
            row["statistic"] = {DETECTOR: float(10 * rng.lognormal(0, 0.3))}
        rows.append(row)
    report |= {"classes": rows, "targets": [target], "found": [{**FOUND, "class": target}]}
    report["model"]["classes"] = n
    return finished(report)


def draw_found(folder: Path, k: int = 2) -> None:
    """The plain images that a scan leaves of the trigger to a class."""
    rng = np.random.default_rng(1)
    save_image(folder / f"found-{k}-trigger.png", rng.random((1, 8, 8)))
    for part in ("before", "after", "change"):
        save_image(folder / f"found-{k}-0-from-1-{part}.png", rng.random((3, 8, 8)))


def read_back(text: str) -> Report:
    """A report through the door that every reader uses."""
    return checked(text)


class Page(HTMLParser):
    """Every tag with its attributes, all text outside of style and script, and what these two hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open] = self.inside.get(self._open, "") + data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every tag of a name."""
        return [a for t, a in self.tags if t == tag]


RESULT: dict[str, Any] = {
    "holds": True,
    "failures": [],
    "samples": 400,
    "clean_accuracy": {"before": 0.9, "before_interval": [0.8, 0.95], "after": 0.895, "after_interval": [0.8, 0.95]},
    "agreement": 0.985,
    "triggers": [
        {"name": "recovered-2", "target": 2, "before": 0.94, "after": 0.004, "samples": 360, "rejected": None},
        {"name": HOSTILE[1], "target": -1, "before": 0.5, "after": 0.0, "samples": 100, "rejected": 0.1},
    ],
    "rejected": 0.03,
    "withheld": True,
    "additions": ["a node Clip"],
    "latency_ms": [{"batch": 1, "before": 0.2, "after": 0.21}],
    "strip": {"rejected": 0.05, "blends": 8, "missed": {}},
    "rescan": {"verdict": "clean", "targets": [], "p_value": 0.4, "reasons": ["no class stands out"]},
    "checker": "pass",
    "changed_initializers": [{"name": "<b>w</b>", "relative_change": 0.1}, {"name": "v", "relative_change": None}],
    "other_differences": [],
    "goals": {"success": 0.02, "accuracy_lost": 0.01, "errors": 0.0, "rejected": 0.05},
    "measured_in": "onnxruntime",
    "notes": [f"read as {HOSTILE[0]}"],
}
EPOCHS = [{"epoch": i, "accuracy": 0.9, "success": 0.9 / (i + 1), "stronger": 0.95 / (i + 1)} for i in range(5)]
CURVES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": EPOCHS, "kept_epoch": 3},
    "trials": {
        "layer": "x",
        "trials": [
            {"layer": "x", "curve": [{"pruned": 3 * i, "accuracy": 0.9, "success": 0.5} for i in range(4)], "chosen": 2}
        ],
    },
    "none": {"u": 3.0, "trials": 7},
    "foreign": {"epochs": [{"epoch": "one"}], "trials": [1, {"layer": None, "curve": {}}]},
}


def patched(kind: str = "patch", facts: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The document of a patch or a verification, with facts of the method that was kept, and other results."""
    attempts = (
        {"method": "prune", "outcome": "misses", "facts": {}},
        {"method": "unlearn", "outcome": "holds", "facts": facts or {}},
    )
    return patch_document.build(
        kind,
        RESULT | changes,
        ("a b.onnx", "a" * 64),
        ("p.onnx", "b" * 64),
        ("c.npz", "", 400),
        "runs/x",
        "unlearn",
        attempts,
    )


def sealed(page: str) -> Page:
    """The page, read; its policy must name the hashes of its one style and its one script, and it must ask for nothing."""
    parsed = Page(page)
    assert not {t for t, _ in parsed.tags} & {"link", "iframe", "object", "embed", "form", "base", "audio", "video"}
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(part.split(" ", 1) for part in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(parsed.inside[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert len(parsed.all(tag)) == 1
    for _, attributes in parsed.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (name, value)
    assert "url(" not in parsed.inside["style"]
    assert "@import" not in parsed.inside["style"]
    return parsed
