"""The main job on the shipped pair: scan, report, patch, verify, through the command line as a user types it.

The two scans and the patch are those of `onnxspect demo`, whose folder the other commands then work on, as docs/guide.md lets a user do;
a scan of a tiny model is killed three times. The demo is the longest test of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervised
from PIL import Image

from onnxspect.engine.jobs.scan import EVIDENCE
from onnxspect.engine.judge.archive import Archive
from onnxspect.engine.report.result import Report
from onnxspect.engine.store import Ledger
from onnxspect.models import zoo
from onnxspect.models.triggers import trigger_from_dict

INFECTED, CLEAN = "fashion_mnist_badnets", "fashion_mnist_clean"


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


def onnxspect(*arguments: object) -> Ran:
    """The installed command in a process of its own."""
    command = [sys.executable, "-c", supervised.MAIN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """`onnxspect demo`, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return onnxspect("demo", "--out", folder, "--json"), folder


@pytest.fixture(scope="module")
def work(demo: tuple[Ran, Path]) -> Path:
    """The demo's folder: models, known and unseen images, finished runs, the patched file."""
    ran, folder = demo
    assert ran.status == 0, ran.err[-2000:] + ran.out[-2000:]
    return folder


def scan(work: Path, name: str, out: str, *extra: object) -> Ran:
    return onnxspect(
        "scan", work / f"{name}.onnx", "--data", work / "known.npz", "--out", work / out, "--preset", "quick", "--json",
        *extra,
    )  # fmt: skip


@pytest.fixture(scope="module")
def infected(work: Path) -> Ran:
    """The command of the demo's first scan: it answers from the run."""
    return scan(work, INFECTED, INFECTED)


@pytest.fixture(scope="module")
def patched(work: Path) -> Path:
    return work / "patched.onnx"


def _planted() -> tuple[np.ndarray, np.ndarray]:
    """The attacker's own trigger: which values ``(1, 28, 28)`` it replaces, and its pattern, float32 in [0, 1]."""
    trigger = trigger_from_dict(zoo.entry(INFECTED)["trigger"])
    black, white = (
        trigger.apply(np.full((1, 28, 28, 1), level, np.uint8), np.random.default_rng(0))[0].transpose(2, 0, 1)
        for level in (0, 255)
    )
    planted = black == white
    assert planted.sum() == 9
    return planted, black.astype(np.float32) / 255


def test_the_demo_finds_patches_and_proves(demo: tuple[Ran, Path]) -> None:
    ran, folder = demo
    assert ran.status == 0, ran.err[-2000:] + ran.out[-2000:]
    result = json.loads(ran.out)
    assert result["infected"] == {"verdict": "backdoored", "targets": [7], "true": 7}
    assert result["clean"] == {"verdict": "clean"}
    proof = result["proof"]
    (planted,) = proof["triggers"]
    assert planted["before"] > 0.95
    assert planted["after"] <= 0.03
    accuracy = proof["clean_accuracy"]
    lost = accuracy["before"] - accuracy["after"]
    # The goals are a point and 2 %; on these 400 images the demo allows their sampling error. What is lost and what is left on 9,000
    # images is measured by benchmarks/demo.py.
    assert lost <= 0.025
    assert proof["holds"]
    assert result["as_it_should_be"]
    patched = onnx.load(folder / "patched.onnx")
    assert {p.key: p.value for p in patched.metadata_props}["onnxspect.method"] in ("clp", "prune", "unlearn", "ibau")
    assert zoo.path(INFECTED).read_bytes() == (folder / f"{INFECTED}.onnx").read_bytes()
    assert zoo.path(INFECTED).read_bytes() != (folder / "patched.onnx").read_bytes()


def test_the_planted_backdoor_is_found(work: Path, infected: Ran) -> None:
    report = json.loads(infected.out)
    assert infected.status == 1
    assert report["verdict"] == "backdoored"
    assert report["targets"] == [zoo.entry(INFECTED)["target"]]
    assert report["p_value"] < 0.01
    assert report["model"]["sha256"] == hashlib.sha256(zoo.path(INFECTED).read_bytes()).hexdigest()
    assert json.loads((work / INFECTED / "report.json").read_text()) == report
    (row,) = report["found"]
    assert (row["class"], row["form"], row["size"]) == (report["targets"][0], "mask", [28, 28])
    assert row["held_out"] > 100
    assert row["held_out_success"] > 0.5
    assert min(row["box"]["top"], row["box"]["left"]) >= 22  # the attacker's nine pixels lie in that corner
    assert Report.open(work / INFECTED).html().count('src="data:image/png;base64,') == 10
    found = Report.open(work / INFECTED).classes[report["targets"][0]].triggers["neural-cleanse"]
    mask = found.arrays["mask"]
    planted, _ = _planted()
    assert mask[planted].sum() > 0.9 * mask.sum()  # the mask lies on the attacker's pixels ...
    assert (found.arrays["pattern"] * mask)[planted].sum() > 0.9 * mask.sum()  # ... and makes them white
    for picture in ("classes.png", "triggers.png", f"trigger-class-{report['targets'][0]}.png"):
        with Image.open(work / INFECTED / picture) as opened:
            drawn = np.asarray(opened.convert("L"))
        assert min(drawn.shape) > 28
        assert len(np.unique(drawn)) > 2


def test_progress_goes_to_stderr_and_the_result_alone_to_stdout(demo: tuple[Ran, Path], infected: Ran) -> None:
    assert infected.out.lstrip().startswith("{")
    assert demo[0].out.lstrip().startswith("{")
    assert "neural-cleanse" in demo[0].err


def test_a_clean_model_is_called_clean(work: Path) -> None:
    done = scan(work, CLEAN, CLEAN)
    report = json.loads(done.out)
    assert (done.status, report["verdict"], report["targets"]) == (0, "clean", [])
    assert report["p_value"] > 0.05


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_report_in_every_format(work: Path, infected: Ran, form: str) -> None:
    """The report command reports, whatever the verdict is: the scan's own status decides."""
    done = onnxspect("report", work / INFECTED, "--format", form)
    assert (infected.status, done.status) == (1, 0)
    assert {"text": "BACKDOORED", "json": '"verdict"', "html": "<!doctype html>", "sarif": "2.1.0"}[form] in done.out


def test_the_patch_kills_the_attackers_own_trigger(work: Path, patched: Path) -> None:
    planted, pattern = _planted()
    own = work / "attackers.npz"
    np.savez(own, mask=planted.astype(np.float32), pattern=pattern, target=zoo.entry(INFECTED)["target"])
    done = onnxspect(
        "verify", patched, "--against", zoo.path(INFECTED), "--data", work / "unseen.npz", "--run", work / INFECTED,
        "--trigger", own, "--max-success", 0.03, "--max-accuracy-lost", 0.025, "--json",
    )  # fmt: skip
    proof = json.loads(done.out)
    attackers = next(t for t in proof["triggers"] if t["name"] == "attackers")
    assert attackers["before"] > 0.95
    # The floors of the demo (2 %, 1 point) are measured on 10,000 images by benchmarks/demo.py; on these 400 one
    # standard error is 0.7 points of success and about a point of accuracy.
    assert done.status == 0, proof["failures"]
    assert proof["checker"] == "pass"
    assert proof["other_differences"] == []


def test_only_weights_and_provenance_differ(patched: Path) -> None:
    before, after = onnx.load(zoo.path(INFECTED)), onnx.load(patched)
    assert {p.key for p in after.metadata_props} == {
        "onnxspect.original_sha256", "onnxspect.tool_version", "onnxspect.method", "onnxspect.evidence",
    }  # fmt: skip
    changed = [
        a.name
        for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True)
        if a.raw_data != b.raw_data
    ]
    assert changed
    for model in (before, after):
        del model.graph.initializer[:]
        del model.metadata_props[:]
    assert before == after


def test_an_unpatched_file_is_not_proven(work: Path, infected: Ran) -> None:
    assert infected.status == 1
    same = zoo.path(INFECTED)
    done = onnxspect("verify", same, "--against", same, "--data", work / "unseen.npz", "--run", work / INFECTED)
    assert done.status == 3
    assert "NOT PROVEN" in done.out


def test_patching_is_refused_where_it_must_be(work: Path, infected: Ran, tmp_path: Path) -> None:
    assert infected.status == 1
    run, data, model = work / INFECTED, work / "known.npz", zoo.path(INFECTED)
    before = model.read_bytes()
    other = onnxspect("patch", zoo.path(CLEAN), "--run", run, "--data", data, "-o", tmp_path / "p.onnx")
    assert (other.status, "belongs to another model" in other.err) == (2, True)
    nothing = onnxspect("patch", model, "--run", tmp_path / "none", "--data", data, "-o", tmp_path / "p.onnx")
    assert (nothing.status, "no run" in nothing.err) == (2, True)
    assert not list(tmp_path.glob("*.onnx"))
    assert model.read_bytes() == before


def units_done(said: str) -> list[str]:
    """Of progress lines such as "reverse-engineering on reference 0 4/10, 12 s left in all: class 3: l2 9.1": stage and class."""
    found = re.findall(
        r"^(reverse-engineering.*?) \d+/\d+(?:, [\d.]+ (?:s|min|h) left(?: in all)?)?: (class \d+):", said, re.MULTILINE
    )
    return [f"{stage}: {unit}" for stage, unit in found]


def test_a_killed_scan_resumes_to_the_same_report(tmp_path: Path) -> None:
    """SIGKILL at several moments; what was finished is not done again, and the digest is that of the undisturbed run.

    On the tiny classifier of four classes: three references, the model and one trigger for all make twenty units, of some hundredths of a
    second each: both kills are far from the last one.
    """
    supervised.plain(tmp_path, target=2)
    supervised.data(tmp_path)
    options = ["scan", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "--preset", "standard"]
    options += ["--detector", "reverse-engineering", "--json", "--out"]
    whole = onnxspect(*options, tmp_path / "undisturbed")
    undisturbed = json.loads(whole.out)
    command = [sys.executable, "-c", supervised.MAIN, *map(str, options), str(tmp_path / "killed")]
    finished: set[str] = set()
    for units_before_the_kill in (1, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        seen = len(finished)
        for line in process.stderr:
            for unit in units_done(line):
                assert unit not in finished, f"{unit} was done twice"
                finished.add(unit)
                seen += 1
            if seen >= units_before_the_kill:
                break
        process.kill()
        process.wait()
        process.stderr.close()
    resumed = onnxspect(*options, tmp_path / "killed")
    report = json.loads(resumed.out)
    assert resumed.out.lstrip().startswith("{")
    kept = re.search(r"resuming, (\d+) units are already done", resumed.err)
    assert kept
    assert int(kept[1]) >= len(finished)
    assert "reverse-engineering" in resumed.err
    again = units_done(resumed.err)
    assert again
    assert not set(again) & finished
    assert resumed.status == whole.status == 1
    assert report["digest"] == undisturbed["digest"]
    assert _timeless(report) == _timeless(undisturbed)
    ran = [archive_of(tmp_path / name) for name in ("undisturbed", "killed")]
    for archive in ran:
        assert archive.subject_error == pytest.approx(1 - report["preprocessing"]["clean_accuracy"])
        assert archive.reference_error is not None
        assert 0 <= archive.reference_error < 0.5
    assert ran[0].difficulty == ran[1].difficulty


def archive_of(run: Path) -> Archive:
    """The evidence that a finished run keeps."""
    with Ledger(run) as ledger:
        text = ledger.fact(EVIDENCE)
    assert text is not None
    return Archive.described(json.loads(text))


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "finished")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def test_another_scan_does_not_mix_into_a_run(work: Path, infected: Ran) -> None:
    assert infected.status == 1
    done = scan(work, INFECTED, INFECTED, "--seed", 1)
    assert (done.status, "seed" in done.err) == (2, True)


def test_nothing_is_written_outside_the_run_folder(tmp_path: Path) -> None:
    """An auditing tool must not phone home: onnxruntime's telemetry id stays unwritten."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MPLCONFIGDIR": str(tmp_path),
    }
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    code = (
        "from onnxspect.engine.subject.subject import Subject; from onnxspect.models import zoo;"
        "s = Subject.from_onnx(zoo.path('fashion_mnist_clean')); s.oracle(); print(s.classes)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "10", done.stderr
    assert not [p for p in home.rglob("*") if p.is_file()]
