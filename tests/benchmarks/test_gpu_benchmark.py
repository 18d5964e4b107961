"""benchmarks/gpu.py without a GPU: what runs, what is skipped and why, what is kept, how it is told."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tolerances import NETWORK_32, SUM_32

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # its files import one another, as they do in the bundle


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plan, words, machine, supervisor, commands, bundle, jobs = (
    _module(f"gpu_{name}") for name in ("plan", "words", "machine", "supervisor", "commands", "bundle", "jobs")
)


def _bench(tmp_path: Path, minutes: float = 1.0, does: Mapping[str, Callable[[object], None]] | None = None) -> object:
    work = tmp_path / "work"
    work.mkdir()
    return supervisor.Supervisor(tmp_path, work, tmp_path / "out" / "gpu.json", "cpu", minutes, 0, True, does or {})


def test_every_job_has_its_commands_and_every_row_a_name_of_its_own() -> None:
    assert set(commands.COMMANDS) == {j.name for j in plan.JOBS}
    names = [r.name for j in plan.JOBS for r in j.rows]
    assert len(names) == len(set(names))
    for job in plan.JOBS:
        assert set(job.needs) <= {j.name for j in plan.JOBS}
        assert job.least <= job.limit


def test_the_goals_are_those_that_were_set() -> None:
    goals = {r.name: r.goal for j in plan.JOBS for r in j.rows if r.goal is not None}
    asked = {"quick": 6, "standard": 15, "thorough": 45, "nc_inside": 3, "re_inside": 3, "signs": 20, "lite0": 60}
    assert goals == goals | asked | {"lite0_memory": 16, "patch": 10, "overhead": 1.15, "shipped": 0, "refused": 0}


def test_named_jobs_bring_what_they_need() -> None:
    assert [j.name for j in plan.chosen("patch")] == ["prepare", "standard", "patch"]
    assert [j.name for j in plan.chosen("lite0,steps")] == ["prepare", "steps", "lite0"]
    assert len(plan.chosen(None)) == len(plan.JOBS)
    with pytest.raises(ValueError, match="no job 'nonsense'"):
        plan.chosen("nonsense")


def test_what_no_longer_fits_is_skipped_with_a_reason() -> None:
    job = plan.Job("x", (), limit=100, least=20, needs=("prepare",))
    assert plan.time_for(job, 300, {"prepare": True}) == (100, "")
    assert plan.time_for(job, 50, {"prepare": True}) == (50 - plan.RESERVE, "")
    assert plan.time_for(job, 21, {"prepare": True})[1] == "21 s left, it may need 20"
    assert plan.time_for(job, 300, {"prepare": False})[1] == "needs prepare"
    assert plan.time_for(job, 300, {})[1] == "needs prepare"


def test_a_job_that_fails_or_hangs_is_a_row_and_the_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"quick": 60, "again": 0.5, "patch": 60}
    few = tuple(plan.Job(name, (plan.Row(name, name, goal=1),), limit, 0) for name, limit in limits.items())
    monkeypatch.setattr(supervisor, "TINY_PATIENCE", 1)

    def broken(bench: supervisor.Supervisor) -> None:
        (ran,), _ = bench.run([[sys.executable, "-c", "import sys; sys.exit('no such luck')"]])
        supervisor.report_of(ran)

    def hanging(bench: supervisor.Supervisor) -> None:
        (ran,), _ = bench.run([[sys.executable, "-c", "import time; time.sleep(60)"]])
        supervisor.report_of(ran)

    def surprising(_: supervisor.Supervisor) -> None:
        raise KeyError("digest")

    bench = _bench(tmp_path, 5, {"quick": broken, "again": hanging, "patch": surprising})
    for job in few:
        bench.do(job)
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["rows"]
    assert [r["outcome"] for r in kept] == ["failed", "timed out", "failed"]
    for row, start in zip(kept, ("exit status 1: no such luck", "killed after", "KeyError: 'digest'"), strict=True):
        assert row["detail"].startswith(start)
    assert [words.met_in_words(r) for r in kept] == ["no"] * 3


def test_a_cut_off_run_keeps_what_it_had(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    bench.fill("quick", 5.5, detail=f"see {tmp_path}/work/runs/quick")
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert "ended" not in kept
    assert kept["rows"][0] | {"value": 5.5, "goal": 6, "met": True, "detail": "see runs/quick"} == kept["rows"][0]


def test_the_table_says_goal_value_and_whether_it_was_met(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    bench.fill("quick", 5.5, peak_mib=2048.0)
    bench.fill("overhead", 1.2)
    bench.fill("launches", 334.0)
    bench.fill("patch", 9.0, "goals missed", "a | b")
    bench.fill("thorough", None, "skipped", "4 s left")
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in words.table(bench.rows).splitlines()[2:]]
    assert [r[2:6] for r in rows] == [
        ["6 s", "5.50 s", "yes", "2.0 GiB"],
        ["1.15", "1.20", "no", "-"],
        ["-", "334", "-", "-"],
        ["10 s", "9.00 s (goals missed)", "no", "-"],
        ["45 s", "skipped", "-", "-"],
    ]
    assert rows[3][6] == "a / b"


def test_nvidia_smi_answers_are_read_as_numbers() -> None:
    assert machine.megabytes("512\n1024\n[N/A]\n\n") == [512.0, 1024.0]


def test_only_missing_packages_are_unpacked(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in (
        "numpy-0.0.1-cp27-cp27-linux_x86_64",
        "not_here_at_all-1.0-py3-none-any",
        "onnxspect-9.9-py3-none-any",
    ):
        with zipfile.ZipFile(wheels / f"{name}.whl", "w") as archive:
            archive.writestr(f"{name.split('-')[0]}/__init__.py", "")
    found = machine.unpack_wheels(wheels, tmp_path / "site")
    assert [f.split("-")[0] for f in found] == ["not_here_at_all", "onnxspect"]
    assert sorted(p.name for p in (tmp_path / "site").iterdir()) == ["not_here_at_all", "onnxspect"]
    (wheels / "not_here_either-1.0-cp27-cp27-linux_x86_64.whl").touch()
    with pytest.raises(SystemExit, match=r"not_here_either is missing, and .* is not for Python"):
        machine.unpack_wheels(wheels, tmp_path / "site")


def test_the_bundle_has_all_that_the_package_needs() -> None:
    wanted = bundle.needed()
    declared = {
        canonicalize_name(Requirement(line).name)
        for line in metadata.requires("onnxspect") or []
        if "extra ==" not in line and "!= 'Linux'" not in line and '!= "Linux"' not in line
    }
    assert declared - set(bundle.THERE) <= wanted
    assert {
        "msgspec",
        "markupsafe",
        "mdurl",
        "license-expression",
    } <= wanted  # two of them are needed by what is needed
    assert not wanted & {*bundle.THERE, "sympy", "joblib", "pytest", "ray"}


def test_measured_processes_keep_what_they_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    bench = _bench(tmp_path)
    code = "import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bench.environment, check=True
    )  # type: ignore[attr-defined]
    assert done.stdout.split() == ["False", str(tmp_path / "work" / "bytecode")]


def test_the_supervisor_needs_the_standard_library_only() -> None:
    code = "import sys, gpu; print([m for m in ('torch', 'numpy', 'onnx', 'onnxspect') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packed_images_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 150)
    pixels = (
        rng.integers(0, 256, (1500, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    )  # flat patches, as lossy likes
    source = tmp_path / "cifar10_subset.npz"
    np.savez(source, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    bundle.pack_small("cifar10", source, tmp_path / "data" / "cifar10.npz")
    file = tmp_path / "data" / "cifar10.npz"
    train = jobs.unpack(file, "train", 1000, 1)
    np.testing.assert_array_equal(train.labels, labels)
    assert float(np.abs(train.images.astype(float) - pixels).mean()) < 16
    clean, measure = (jobs.unpack(file, part, 1000, 1) for part in ("clean", "measure"))
    assert np.bincount(clean.labels).tolist() == [100] * 10  # SHARES
    assert np.bincount(measure.labels).tolist() == [50] * 10  # what is left
    where = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    assert [where[i.tobytes()] for i in clean.images] == clean.labels.tolist()  # lossless
    few = jobs.unpack(file, "clean", 4, 2)
    assert few.images.shape == (400, 16, 16, 3)
    assert np.unique(few.labels).tolist() == [0, 1, 2, 3]


def test_batch_norm_is_folded_into_the_same_function() -> None:
    import torch

    from onnxspect.models import architectures

    torch.manual_seed(0)
    module = architectures.get("resnet10_tiny").build((16, 16, 3), 4, 0)
    with torch.no_grad():
        module(torch.rand(32, 3, 16, 16))  # statistics that are not the identity
        x = torch.rand(4, 3, 16, 16)
        plain = module.eval()(x)
        torch.testing.assert_close(jobs.folded(module)(x), plain, rtol=NETWORK_32, atol=SUM_32)
    assert not [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_the_page_lists_every_job() -> None:
    page = (BENCHMARKS.parent / "docs" / "gpu.md").read_text()
    assert [j.name for j in plan.JOBS if f"`{j.name}`" not in page] == []


def test_the_results_page_has_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _bench(tmp_path)
    bench.begin(installed=True)
    bench.fill("quick", 5.5, peak_mib=2048.0)
    bench.fill("thorough", None, "skipped", "4 s left")
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "docs")
    from result_sections import machines

    text = machines.gpu(json.loads((tmp_path / "out" / "gpu.json").read_text()))
    assert "| 6 s | 5.5 s | yes | 2.0 GiB |" in text
    assert "| 45 s | skipped | - | - | 4 s left |" in text
    assert "cut off" in text
