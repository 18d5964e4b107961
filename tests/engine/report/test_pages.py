"""The pages of scans and patches: what they say, that nothing in them can run or load, and that pictures are ours."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
from report_support import CURVES, HOSTILE, Page, draw_found, finished, of_many_classes, patched, report_of, sealed

from onnxspect.engine.errors import MachineError
from onnxspect.engine.report import as_html, as_patch_html, patch_document, words
from onnxspect.engine.report.findings import patch_command
from onnxspect.engine.report.glossary import GLOSSARY

VERDICTS = ("clean", "backdoored", "inconclusive")


def check_links(parsed: Page) -> None:
    """Every link leads to a place of the page, every id is there once, every picture has words."""
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"] for a in parsed.all("a")} <= {f"#{i}" for i in ids}
    assert all((a.get("alt") or "").endswith(".") or "class" in (a.get("alt") or "") for a in parsed.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in parsed.all("svg"))


@pytest.mark.parametrize("verdict", VERDICTS)
def test_page_is_sealed_and_says_what_was_found(verdict: str, tmp_path: Path) -> None:
    report = report_of(verdict)
    draw_found(tmp_path)
    parsed = sealed(as_html.render(report, tmp_path))
    check_links(parsed)
    for said in (
        as_html.headline(report),
        as_html.lead(report),
        "31 January 2026, 12:00 UTC",
        *report["limits"],
        *report["notes"],
    ):
        assert said in parsed.text
    assert report["digest"] in parsed.text
    if verdict == "backdoored":
        assert "97 % of 120 unseen images" in parsed.text
        assert "in the lower right corner, on 2 by 2 of 8 by 8 pixels" in parsed.text
        assert len(parsed.all("img")) == 4
        assert patch_command(report, tmp_path) in parsed.text
        assert "22 times smaller" in parsed.text  # 0.5 beside 11
    else:
        assert parsed.all("img") == []
        assert "--preset thorough" in parsed.text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_hostile_names_stay_text(verdict: str, tmp_path: Path) -> None:
    report = report_of(verdict, hostile=True)
    page = as_html.render(report, tmp_path)
    parsed = sealed(page)
    assert HOSTILE[0] in parsed.text
    assert HOSTILE[2] in parsed.text
    assert HOSTILE[1] in parsed.text
    assert "<b>.onnx" in parsed.text
    assert not [c for c in page if not c.isprintable() and c != "\n"]
    assert "\u202e" not in page


def test_command_cannot_be_hijacked_by_a_path(tmp_path: Path) -> None:
    report = report_of("backdoored")
    report["model"]["path"] = "--force; rm -rf $HOME.onnx"
    assert "patch './--force; rm -rf $HOME.onnx' --run" in patch_command(report, tmp_path)
    report["model"]["path"] = "a\nrm -rf x"
    assert "patch MODEL.onnx --run" in patch_command(report, tmp_path)


def test_pictures_are_read_through_the_door(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    draw_found(outside)
    folder = tmp_path / "run"
    folder.mkdir()
    for path in outside.iterdir():
        (folder / path.name).symlink_to(path)
    assert sealed(as_html.render(report_of("backdoored"), folder)).all("img") == []
    for path in folder.iterdir():
        path.unlink()
    draw_found(folder)
    (folder / "found-2-0-from-1-after.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "found-2-1-from-99-before.png").write_bytes((folder / "found-2-0-from-1-before.png").read_bytes())
    assert (
        len(sealed(as_html.render(report_of("backdoored"), folder)).all("img")) == 1
    )  # the trigger; no example is whole


def test_report_of_the_first_release_has_a_page(tmp_path: Path) -> None:
    report = report_of("backdoored")
    for name in ("found", "hidden", "finished"):
        del report[name]
    parsed = sealed(as_html.render(finished(report), tmp_path))
    assert "A backdoor was found" in parsed.text
    assert parsed.all("time") == []


def test_a_thousand_classes(tmp_path: Path) -> None:
    report = of_many_classes()
    page = as_html.render(report, tmp_path)
    parsed = sealed(page)
    rows = [a for a in parsed.all("tr") if a.get("class") == "named"]
    assert len(rows) == 1
    assert len(parsed.all("tr")) == 1001
    assert len(page) < 2_000_000
    first = re.search(r'<th role="rowheader"[^>]*data-v="(\d+)"', page)
    assert first is not None
    assert first[1] == "417"


def test_every_term_that_is_linked_is_explained(tmp_path: Path) -> None:
    for verdict in VERDICTS:
        page = as_html.render(report_of(verdict), tmp_path)
        for key in set(re.findall(r'href="#term-([\w-]+)"', page)):
            assert f'id="term-{key}"' in page
            assert page.count(GLOSSARY[key][0]) >= 2


@pytest.mark.parametrize("curve", CURVES)
def test_page_of_a_patch(curve: str) -> None:
    parsed = sealed(as_patch_html.render(patched(facts=CURVES[curve])))
    check_links(parsed)
    for said in (
        "The patch holds",
        "94.0 %",
        "0.4 %",
        "98.5 %",
        "<b>w</b>",
        HOSTILE[1],
        "A fresh scan",
        "b" * 64,
        f"read as {HOSTILE[0]}",
    ):
        assert said in parsed.text
    assert ("How it got there" in parsed.text) == (curve in ("epochs", "trials"))
    assert "onnxspect verify p.onnx --against 'a b.onnx' --data FRESH-SAMPLES --run runs/x" in parsed.text


def test_page_of_a_proof_that_fails() -> None:
    parsed = sealed(as_patch_html.render(patched("verify", holds=False, failures=["a trigger still works"])))
    assert "The patched file misses its goals" in parsed.text
    assert "a trigger still works" in parsed.text
    assert "Do not deploy" in parsed.text


def test_facts_of_a_method_of_ones_own_cost_no_patch(tmp_path: Path) -> None:
    facts = {
        "array": np.ones(3),
        "number": np.float32(0.5),
        "nan": float("nan"),
        3: {"x": (1, Path("a"))},
        "epochs": np.ones(2),
    }
    document = patched(facts=facts)
    patch_document.keep(document, tmp_path)
    assert patch_document.read(tmp_path, "patch") == document
    assert document["attempts"][1]["facts"]["number"] == 0.5
    assert document["attempts"][1]["facts"]["nan"] is None
    assert "The patch holds" in as_patch_html.render(document)


def test_document_of_a_patch_is_kept_and_checked(tmp_path: Path) -> None:
    document = patched(facts=CURVES["epochs"])
    path = patch_document.keep(document, tmp_path)
    assert path.name == "patch.json"
    assert patch_document.read(tmp_path, "patch") == document
    assert patch_document.read(tmp_path, "verify") is None
    for change in (
        {"schema": "onnxspect-patch/2"},
        {"result": {}},
        {"finished": "today"},
        {"original": {"path": "x", "sha256": "<"}},
    ):
        patch_document.keep(copy.deepcopy(document) | change, tmp_path)
        with pytest.raises(MachineError):
            patch_document.read(tmp_path, "patch")
    path.write_text("[" * 100_000)
    with pytest.raises(MachineError):
        patch_document.read(tmp_path, "patch")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(MachineError):
        patch_document.read(tmp_path, "patch")


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (1.0, "practically every clean model"),
        (0.41, "about 4 of 10 clean models"),
        (0.05, "about one clean model in 20"),
        (0.07, "about one clean model in 14"),
        (1.4e-4, "about one clean model in 7,000"),
        (1.4e-7, "about one clean model in 7 million"),
        (1e-30, "fewer than one clean model in a billion"),
        (0.0, "fewer than one clean model in a billion"),
    ],
)
def test_chances_in_words(p: float, said: str) -> None:
    assert words.chance(p) == said


@pytest.mark.parametrize(
    ("top", "left", "said"),
    [
        (0, 0, "in the upper left corner"),
        (25, 25, "in the lower right corner"),
        (13, 13, "in the middle of the image"),
        (13, 0, "on the left side"),
        (25, 13, "at the lower edge"),
    ],
)
def test_places_in_words(top: int, left: int, said: str) -> None:
    assert words.place({"top": top, "left": left, "height": 3, "width": 3}, (28, 28)) == said
    assert words.place({"top": 0, "left": 0, "height": 27, "width": 27}, (28, 28)) == "all over the image"


def test_shares_are_never_rounded_to_all_or_none() -> None:
    assert [words.share(v) for v in (0.0, 0.001, 0.5, 0.999, 1.0, None)] == [
        "0 %",
        "under 1 %",
        "50 %",
        "over 99 %",
        "100 %",
        "–",
    ]
    assert words.times(0.05) == "20 times smaller"
    assert words.times(1.5) == "1.5 times larger"
