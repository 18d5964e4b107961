"""Untrusted names on their way to a person: one door for the terminal, and no report is lost for a name."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_model, saved
from report_support import sealed
from rich.text import Text
from run_folder_support import finished, trigger_unit, whole_report

from onnxspect.cli import console
from onnxspect.cli.main import run
from onnxspect.converters.text import visible, well_formed
from onnxspect.engine.report import as_html, as_sarif, pictures
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.report.result import Report
from onnxspect.engine.stored_report import digest

#: Each is a way to say something that is not in the report, or to make a reader fall over.
NAMES = {
    "escape codes": "\x1b[2J\x1b[1;32mCLEAN\x1b[0m",
    "a forged line": "cat\nCLEAN  model.onnx  p = 1\r",
    "the other direction": "\u202eNAELC\u202c",
    "isolates": "a\u2066b\u2069",
    "eight-bit codes": "\x9b2J",
    "a hyperlink": "\x1b]8;;http://127.0.0.1\x07here\x1b]8;;\x07",
    "markup": "[link=http://127.0.0.1]x[/link][bold red]y[/]",
    "broken markup": "[/] [/red] [[",
    "an emoji code": ":skull:",
    "a formula": r"$\frac{$",
    "another formula": r"$x^{$ \end $$",
    "a tag": "</td><script>alert(1)</script>",
    "a link of SARIF": "[CLEAN](http://127.0.0.1) {0}",
    "bytes that are no UTF-8": os.fsdecode(b"caf\xe9"),
    "invisible letters": "a\u200b\u200db",
    "a null": "a\x00b",
    "lines of other scripts": "a\u2028b\u2029c\x85d",
    "other scripts": "猫 кошка",
}


def named(name: str) -> dict[str, Any]:
    """A report whose every free text is that name."""
    report = whole_report()
    report["model"]["path"] = report["data"]["path"] = name
    report["preprocessing"]["why"] = report["preprocessing"]["chosen"]["name"] = name
    report["reasons"] = report["limits"] = [name]
    report["preset"] = report["device"] = name
    for row in report["classes"]:
        row["name"] = row["kind"] = name
    report["detectors"].append({"name": "cepa" + name, "status": "skipped", "reason": name})
    report = well_formed(report)
    return report | {"digest": digest(report)}


class Page(HTMLParser):
    """All text of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", NAMES)
def test_every_form_of_a_report_shows_a_name_and_obeys_none(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path / "run", named(NAMES[kind]))
    for form in ("text", "json", "html", "sarif"):
        assert run(["report", str(folder), "--format", form]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert [c for c in out if not c.isprintable() and c != "\n"] == []
        out.encode()
        if form == "text":
            assert not [line for line in out.splitlines() if line.lstrip().startswith("CLEAN")]
            assert out.splitlines()[0].startswith("BACKDOORED")
        elif form == "html":
            sealed(out)
        else:
            document = json.loads(out)
            if form == "json":
                assert document["classes"][0]["name"] == well_formed(NAMES[kind])
            else:
                assert "(http" not in document["runs"][0]["results"][0]["message"]["text"].replace(r"\](http", "")
    assert visible(well_formed(NAMES[kind])).replace("\\", "")[:8] in Report.open(folder).text(300).replace("\\", "")


#: Of every way one: drawing takes half a second.
DRAWN = ("a formula", "another formula", "escape codes", "bytes that are no UTF-8", "a null")


@pytest.mark.parametrize("kind", DRAWN)
def test_pictures_draw_names_as_they_stand(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = named(NAMES[kind])
    with pictures.plain_text():
        charts = [pictures.bars(report), pictures.sheet([trigger_unit(2)], {2}, report)]
        if kind == "a formula":
            charts.append(pictures.trigger_sheet(trigger_unit(2), quadrant_images(5), report))
        for chart in charts:
            assert pictures.png(chart).startswith(b"\x89PNG")
        assert all(not text.get_parse_math() for text in charts[0].axes[0].get_xticklabels())


def test_nothing_in_the_working_folder_asks_for_tex(tmp_path: Path) -> None:
    """matplotlib reads a matplotlibrc where it is started: in an untrusted folder, perhaps."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = (
        "import sys\nsys.path[:0] = sys.argv[1:]\n"
        "from run_folder_support import whole_report\nfrom onnxspect.engine.report import pictures\n"
        "with pictures.plain_text():\n    print(len(pictures.png(pictures.bars(whole_report()))) > 1000)\n"
    )
    here = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, here], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_a_terminal_that_lacks_letters(
    encoding: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path / "run", named("猫 ü"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["report", str(folder), "--format", form]) == 0
    stream.flush()
    out = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    if form == "json":
        assert json.loads(out)["classes"][0]["name"] == "猫 ü"
    elif form == "html":
        assert "猫 ü" in Page(out).text
    elif form == "text":
        assert "BACKDOORED" in out


def test_the_process_has_the_door_too(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", named("猫"))
    done = subprocess.run(
        [sys.executable, "-m", "onnxspect", "report", str(folder)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u732b" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="paths of any bytes")
def test_a_path_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scan ends with its report, and is found again."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    model = saved(quadrant_model(target=2), folder / os.fsdecode(b"m\xff.onnx"))
    samples = quadrant_images(30)
    data = folder / os.fsdecode(b"d\xfe.npz")
    np.savez(
        data, images=samples.images, labels=samples.labels, classes=np.array(["a", r"$\frac{$", "[/]", "d\x1b[2J"])
    )
    arguments = [
        "scan",
        str(model),
        "--data",
        str(data),
        "--out",
        str(folder / "run"),
        "--detector",
        "max-margin",
        "-q",
    ]
    first = run([*arguments, "--device", "cpu"])
    said = capsys.readouterr()
    assert first in (0, 1, 3), said.err
    assert "\x1b" not in said.out
    assert (folder / "run" / "report.json").is_file()
    assert run(["report", str(folder / "run"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["path"].endswith(r"m\udcff.onnx")


@pytest.mark.parametrize("kind", NAMES)
def test_the_door_of_the_terminal(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = NAMES[kind]
    watcher = console.Progressing()
    watcher.notice(name)
    watcher.start(name, 2)
    watcher.advance(name, name)
    watcher.finish(name)
    console.err.print(name, style="dim")
    console.show(Text(name))
    console.show_raw(name)
    out, err = capsys.readouterr()
    assert [c for c in out + err if not c.isprintable() and c != "\n"] == []
    assert len(err.splitlines()) == 4  # a line each: nobody can forge one


def test_an_error_is_a_line_whatever_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **{"\x1b[2J\nCLEAN": np.zeros(3)})
    model = saved(quadrant_model(), tmp_path / "m\x1b[2J\nCLEAN.onnx")
    for arguments in (["scan", str(model), "--data", str(data)], ["info", str(tmp_path / "none\nCLEAN")]):
        assert run(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "\x1b" not in err
        assert not [line for line in err.splitlines() if line.startswith("CLEAN")]


def test_json_escapes_what_a_terminal_obeys_and_says_the_same() -> None:
    for name in NAMES.values():
        text = to_json({"a": name, "b": "ü猫\U0001f600"})
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
        assert json.loads(text) == {"a": name, "b": "ü猫\U0001f600"}
        assert "ü猫\U0001f600" in text


def test_a_sarif_viewer_finds_no_link() -> None:
    report = named("[x](http://127.0.0.1)")
    text = as_sarif.render(report)["runs"][0]["results"][0]["message"]["text"]
    assert r"\[x\](http" in text
    assert 'href="http' not in as_html.render(report, Path("nowhere"))
