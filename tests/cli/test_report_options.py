"""What a pipeline relies on: statuses, files by their endings, policies, progress as JSON; the action and the hook run as they stand."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import quadrant_images
from report_support import draw_found, patched, report_of
from run_folder_support import finished

from onnxspect.cli.main import run
from onnxspect.engine.report import patch_document
from onnxspect.engine.report.findings import findings

ROOT = Path(__file__).parents[2]
NAMES = ("report.html", "report.sarif", "report.json", "report.cdx.json", "report.xml", "report.md", "report.txt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a backdoored model, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "run", report_of("backdoored"))
    draw_found(tmp_path / "run")
    return tmp_path / "run"


def test_report_writes_every_format_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), *(a for name in NAMES for a in ("-o", name))]) == 0
    assert capsys.readouterr().out == ""
    begins = ("<!doctype html>", "{", "{", "{", "<?xml", "## ", "BACKDOORED")
    for name, begin in zip(NAMES, begins, strict=True):
        assert Path(name).read_text().startswith(begin), name
    assert json.loads(Path("report.sarif").read_text())["version"] == "2.1.0"
    assert json.loads(Path("report.cdx.json").read_text())["specVersion"] == "1.6"
    assert run(["report", str(folder), "--format", "markdown"]) == 0
    assert capsys.readouterr().out == Path("report.md").read_text()


def test_an_ending_that_names_nothing_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(folder), "-o", "report.doc"]) == 2
    assert ".sarif" in capsys.readouterr().err
    assert run(["scan", "nowhere.onnx", "--data", "nowhere", "-o", "report.doc"]) == 2
    assert "report.doc" in capsys.readouterr().err
    assert run(["report", str(folder), "-o", "no/such/folder/report.html"]) == 2


def test_report_of_a_patch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), "--of", "patch"]) == 2
    assert "no patch was made" in capsys.readouterr().err
    patch_document.keep(patched(), folder)
    assert run(["report", str(folder), "--of", "patch", "-o", "patch.html", "-o", "patch.json"]) == 0
    assert "The patch holds" in Path("patch.html").read_text()
    assert json.loads(Path("patch.json").read_text()) == patched() | {
        "finished": json.loads(Path("patch.json").read_text())["finished"]
    }
    assert run(["report", str(folder), "--of", "patch", "-o", "patch.sarif"]) == 2


def test_accepted_findings_are_marked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accept = '[[accept]]\nid = "OSX101-2-abababababab"\nreason = "known"\nexpires = {}\n'
    Path("onnxspect.toml").write_text(accept.format("2999-01-01"))
    policy = ("--policy", "onnxspect.toml")
    assert run(["report", str(folder), "-o", "a.sarif", "-o", "a.xml", *policy]) == 0
    assert "is accepted: known" in capsys.readouterr().err
    (result,) = json.loads(Path("a.sarif").read_text())["runs"][0]["results"]
    assert result["suppressions"] == [{"kind": "external", "status": "accepted", "justification": "known"}]
    assert 'failures="0"' in Path("a.xml").read_text()
    assert run(["report", str(folder), "-o", "b.sarif"]) == 0  # one that only lies there decides nothing
    assert "suppressions" not in Path("b.sarif").read_text()
    Path("onnxspect.toml").write_text(accept.format("2020-01-01"))
    assert run(["report", str(folder), "-o", "c.sarif", *policy]) == 0
    assert "expired on 2020-01-01" in capsys.readouterr().err
    assert "suppressions" not in Path("c.sarif").read_text()
    assert run(["report", str(folder), *policy, "--policy", "missing.toml"]) == 2


@pytest.fixture(scope="module")
def scanned(planted_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the tiny planted model, samples, a policy that names them, and a finished scan.

    It is by a screening detector alone, which is quick, and can neither convict nor acquit.
    """
    work = tmp_path_factory.mktemp("work")
    (work / "model.onnx").write_bytes(planted_file.read_bytes())
    samples = quadrant_images(30)
    np.savez(work / "clean.npz", images=samples.images.transpose(0, 2, 3, 1), labels=samples.labels)
    (work / "onnxspect.toml").write_text('data = "clean.npz"\npreset = "quick"\n')
    done = onnxspect(work, "scan", "model.onnx", *SCAN, "--progress", "json", "-o", "a.html", "-o", "a.json")
    assert done.returncode == 3, done.stderr
    assert "INCONCLUSIVE" in done.stdout
    assert json.loads((work / "a.json").read_text())["verdict"] == "inconclusive"
    assert "There is no verdict on this model" in (work / "a.html").read_text()
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {"start", "advance", "finish"} <= {e["event"] for e in events}
    last = [e for e in events if e["event"] == "advance" and e["task"] == "max-margin"][-1]
    assert last["done"] == last["total"] == 4
    return work


DETECTOR = ("--detector", "max-margin", "--out", "run")
SCAN = (*DETECTOR, "--policy", "onnxspect.toml")


def onnxspect(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxspect", *arguments],
        cwd=work,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize(("options", "status"), [((), 3), (("--fail-on", "backdoored"), 0), (("--exit-zero",), 0)])
def test_what_a_scan_fails_on(
    scanned: Path, options: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished run answers, so that only the status is new."""
    monkeypatch.chdir(scanned)
    assert run(["scan", "model.onnx", *SCAN, "-q", *options]) == status


def test_an_accepted_finding_fails_no_scan(
    scanned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scanned)
    (finding,) = findings(json.loads((scanned / "a.json").read_text()))
    policy = scanned / "accepting.toml"
    accept = f'[[accept]]\nid = "{finding.id}"\nreason = "test"\nexpires = 2999-01-01\n'
    policy.write_text('data = "clean.npz"\npreset = "quick"\n' + accept)
    assert run(["scan", "model.onnx", *DETECTOR, "--policy", str(policy)]) == 0
    said = capsys.readouterr()
    assert "is accepted: test" in said.err
    assert "INCONCLUSIVE" in said.out


def test_exit_zero_and_fail_on_contradict_each_other(scanned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scanned)
    assert run(["scan", "model.onnx", "--exit-zero", "--fail-on", "backdoored"]) == 2
    assert run(["scan", "model.onnx"]) == 2  # no samples


def test_the_action_runs(scanned: Path, tmp_path: Path) -> None:
    """Its steps as GitHub runs them: bash, inputs as the environment says, outputs read back."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    install, scan = action["runs"]["steps"]
    for step in (install, scan):
        assert "${{" not in step["run"]  # an input in a script would be a command
    given = {
        "MODEL": "model.onnx",
        "FAIL_ON": "inconclusive",
        "OUT": "run",
        "POLICY": "onnxspect.toml",
        "ARGS": "--detector max-margin -q",
    }
    assert set(scan["env"]) == {*given, "DATA", "PRESET"}
    named = {e.removeprefix("${{ inputs.").removesuffix(" }}") for s in (install, scan) for e in s["env"].values()}
    assert named == set(action["inputs"])
    environment = os.environ | dict.fromkeys(scan["env"], "") | given
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{tools(tmp_path)}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
        "INSTALL": "none",
    }
    environment |= {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    bash = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"]
    assert subprocess.run([*bash, install["run"]], env=environment, cwd=scanned, timeout=60).returncode == 0
    done = subprocess.run(
        [*bash, scan["run"]], env=environment, cwd=scanned, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 3, done.stderr
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert (outputs["status"], outputs["verdict"]) == ("3", "inconclusive")
    assert json.loads(Path(outputs["sarif"]).read_text())["version"] == "2.1.0"
    assert Path(outputs["html"]).read_text().startswith("<!doctype html>")
    assert "There is no verdict" in (tmp_path / "summary").read_text()
    environment["MODEL"] = "$(touch hijacked).onnx"
    done = subprocess.run(
        [*bash, scan["run"]], env=environment, cwd=scanned, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2
    assert not (scanned / "hijacked").exists()
    assert (tmp_path / "output").read_text().splitlines()[-1] == "status=2"


def test_the_hook_scans_every_file_it_is_given(scanned: Path, tmp_path: Path) -> None:
    """It goes on after a file that fails, and fails then itself."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    environment = os.environ | {"PATH": f"{tools(tmp_path)}:{os.environ['PATH']}"}
    command = [*shlex.split(hook["entry"]), "missing.onnx", "b $(touch hijacked).onnx"]
    done = subprocess.run(command, env=environment, cwd=scanned, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "missing.onnx" in done.stderr
    assert "b $(touch hijacked).onnx" in done.stderr
    assert not (scanned / "hijacked").exists()


def tools(folder: Path) -> Path:
    """A folder for PATH with this Python and this onnxspect."""
    made = folder / "bin"
    made.mkdir()
    (made / "onnxspect").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m onnxspect "$@"\n')
    (made / "onnxspect").chmod(0o755)
    (made / "python").symlink_to(sys.executable)
    return made


def test_completion() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from onnxspect.cli.main import main; main()"],
        env=os.environ | {"COMP_WORDS": "onnxspect rep", "COMP_CWORD": "1", "_ONNXSPECT_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "plain,report" in done.stdout
