"""Policies: what they may say, what they accept, and until when."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from report_support import report_of

from onnxspect.cli.exit_status import of_scan
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import policy
from onnxspect.engine.report.findings import findings

ID = "OSX101-2-abababababab"
WHOLE = f"""
data = "clean/"
preset = "quick"
fail-on = "backdoored"

[[accept]]
id = "{ID}"
reason = "the demonstration model"
expires = 2027-06-30
"""


def test_a_whole_policy(tmp_path: Path) -> None:
    path = tmp_path / policy.FILE
    path.write_text(WHOLE)
    read = policy.read(path)
    assert (read.data, read.train, read.preset, read.fail_on) == (tmp_path / "clean", None, "quick", "backdoored")
    found = findings(report_of("backdoored"))
    last = datetime.date(2027, 6, 30)
    assert read.reasons(found, last) == {ID: "the demonstration model"}
    assert read.notices(found, last) == []
    after = last + datetime.timedelta(days=1)
    assert read.reasons(found, after) == {}
    assert read.notices(found, after) == [f"the acceptance of {ID} expired on 2027-06-30"]
    other = report_of("backdoored")
    other["model"]["sha256"] = "cd" * 32
    assert read.reasons(findings(other), last) == {}  # another file, another id


@pytest.mark.parametrize(
    "text",
    [
        "data = 3",
        "dta = 'x'",
        "fail-on = 'always'",
        "accept = 'all'",
        "[[accept]]\nid = 'x'\nreason = 'y'",
        "[[accept]]\nid = 'x'\nreason = ' '\nexpires = 2027-01-01",
        "[[accept]]\nid = 'x'\nreason = 'y'\nexpires = '2027-01-01'",
        "[[accept]]\nid = 'x'\nreason = 'y'\nexpires = 2027-01-01T00:00:00Z",
        "[[accept]]\nid = 'x'\nreason = 'y'\nexpires = 2027-01-01\nuntil = 1",
        "not toml",
        "\x00",
    ],
)
def test_what_no_policy_says_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / policy.FILE
    path.write_text(text)
    with pytest.raises(OnnxspectError, match=r"onnxspect\.toml"):
        policy.read(path)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError):
        policy.read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("fail_on", "statuses"),
    [("inconclusive", (0, 1, 3)), ("backdoored", (0, 1, 0)), ("never", (0, 0, 0))],
)
def test_statuses(fail_on: str, statuses: tuple[int, ...]) -> None:
    verdicts = ("clean", "backdoored", "inconclusive")
    assert tuple(of_scan(v, fail_on, False) for v in verdicts) == statuses
    assert {of_scan(v, fail_on, True) for v in verdicts} == {0}
