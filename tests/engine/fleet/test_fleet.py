"""Many models in one output folder: references once, nothing twice, nothing lost, and no model at another's cost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_model, saved
from fleet_support import InThisProcess

from onnxspect.cli.main import run as command
from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.fleet.cache import Cache
from onnxspect.engine.fleet.executor import Ended, Job
from onnxspect.engine.fleet.fleet import MOST_TRIES, TRIES, Fleet
from onnxspect.engine.fleet.index import Result
from onnxspect.engine.fleet.many import scan_many
from onnxspect.engine.fleet.models import Wanted
from onnxspect.engine.fleet.plan import Scan, planned
from onnxspect.engine.run_folder import REQUEST
from onnxspect.engine.store import Ledger

KILLED = Ended(-9, "", 0.1)


def options(folder: Path) -> dict[str, tuple[str, ...]]:
    return {
        "data": (str(folder / "data.npz"),),
        "preset": ("quick",),
        "detector": ("reverse-engineering",),
        "device": ("cpu",),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, the middle one with a backdoor, a file that is none, and samples."""
    folder = tmp_path_factory.mktemp("models")
    for name, target in (("a", None), ("b", 2), ("c", 1)):
        saved(quadrant_model(target), folder / f"{name}.onnx")
    (folder / "bad.onnx").write_bytes(b"no model")
    samples = quadrant_images(30)
    np.savez(folder / "data.npz", images=samples.images, labels=samples.labels)
    return folder


def scans(models: Path, *names: str) -> list[Scan]:
    return list(planned([Wanted(models / f"{n}.onnx") for n in names], options(models), 1))


@pytest.fixture(scope="module")
def first(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[InThisProcess, Path, Cache, list[Result]]:
    """All of them scanned: who carried it out, the output folder, the cache, the results."""
    folder = tmp_path_factory.mktemp("first")
    executor, cache = InThisProcess(), Cache(folder / "cache")
    results = Fleet(scans(models, "a", "b", "bad", "c", "lost"), folder / "out", cache, executor).run()
    return executor, folder / "out", cache, results


def test_references_once_and_a_result_for_each(first: tuple[InThisProcess, Path, Cache, list[Result]]) -> None:
    executor, out, _, results = first
    assert [r.outcome for r in results] == ["clean", "backdoored", "refused", "backdoored", "refused"]
    assert [r.targets for r in results] == [(), ("2",), (), ("1",), ()]
    assert "not an ONNX file" in results[2].cause
    assert "no such file" in results[4].cause
    assert executor.kinds() == ["a", "references", "a", "b", "bad", "c"]
    db = sqlite3.connect(out / "index.sqlite")
    rows = db.execute("SELECT path, outcome, folder, digest FROM scans ORDER BY path").fetchall()
    assert [(Path(p).stem, o) for p, o, _, _ in rows] == [
        ("a", "clean"), ("b", "backdoored"), ("bad", "refused"), ("c", "backdoored"), ("lost", "refused")
    ]  # fmt: skip
    assert all((out / f / "report.json").is_file() == bool(d) for _, _, f, d in rows)


def test_the_report_is_the_one_of_a_scan_alone(
    models: Path, first: tuple[InThisProcess, Path, Cache, list[Result]], tmp_path: Path
) -> None:
    alone = ["scan", str(models / "b.onnx"), "--data", str(models / "data.npz"), "--preset", "quick", "-q", "--json"]
    assert command([*alone, "--detector", "reverse-engineering", "--device", "cpu", "--out", str(tmp_path / "b")]) == 1
    assert json.loads((tmp_path / "b/report.json").read_text())["digest"] == first[3][1].digest
    with Ledger(tmp_path / "b/references") as own, Ledger(first[1] / first[3][1].folder / "references") as shared:
        assert own.fact("fingerprint") == shared.fact("fingerprint")
        name = "reverse-engineering on reference 1"
        assert {k: u.measurements for k, u in own.units(name).items()} == {
            k: u.measurements for k, u in shared.units(name).items()
        }


def test_what_is_known_is_not_scanned_again(
    models: Path, first: tuple[InThisProcess, Path, Cache, list[Result]], tmp_path: Path
) -> None:
    _, out, cache, results = first
    again = InThisProcess()
    assert Fleet(scans(models, "a", "b", "c"), out, cache, again).run() == [results[i] for i in (0, 1, 3)]
    elsewhere = Fleet(scans(models, "c", "a"), tmp_path / "other", cache, again)
    found = elsewhere.run()
    assert [r.digest for r in found] == [results[3].digest, results[0].digest]
    assert elsewhere.folder(found[0]) == (out / results[3].folder).absolute()
    assert again.done == []
    copy = tmp_path / "copy.onnx"  # another name for the same bytes, given twice
    copy.write_bytes((models / "a.onnx").read_bytes())
    (s,) = planned([Wanted(copy)], options(models), 1)
    assert [r.digest for r in Fleet([s, s], tmp_path / "third", cache, again).run()] == [results[0].digest] * 2
    assert again.done == []


def test_a_cache_is_believed_only_as_long_as_the_run_is_there(
    models: Path, first: tuple[InThisProcess, Path, Cache, list[Result]], tmp_path: Path
) -> None:
    _, out, cache, results = first
    (c,) = scans(models, "c")
    other = Cache(tmp_path / "cache")
    other.remember(c.key, cache.known(c.key).__class__(tmp_path / "nowhere", results[3].digest))  # type: ignore[union-attr]
    asked: list[Job] = []

    def lost(job: Job) -> Ended:
        asked.append(job)
        return Ended(2, "onnxspect: not today", 0.1)

    assert Fleet([c], tmp_path / "out", other, InThisProcess(before=lost)).run()[0].outcome == "refused"
    wrong = cache.known(c.key).__class__(out / results[3].folder, "0" * 64)  # type: ignore[union-attr]
    other.remember(c.key, wrong)
    Fleet([c], tmp_path / "out", other, InThisProcess(before=lost)).run()
    assert len(asked) == 2
    none = Cache(cache.folder, results=False)
    assert none.known(c.key) is None


def test_killed_between_the_end_of_a_scan_and_its_commit(
    models: Path, first: tuple[InThisProcess, Path, Cache, list[Result]]
) -> None:
    """The run is finished, the index does not know it: it is taken, not done again."""
    _, out, cache, results = first
    with sqlite3.connect(out / "index.sqlite") as db:
        db.execute("DELETE FROM results WHERE key = ?", (results[1].key,))
    executor = InThisProcess()
    assert Fleet(scans(models, "b"), out, cache, executor).run() == [results[1]]
    assert executor.done == []
    with sqlite3.connect(out / "index.sqlite") as db:
        assert db.execute("SELECT outcome FROM results WHERE key = ?", (results[1].key,)).fetchall() == [
            ("backdoored",)
        ]


def test_killed_scans_are_tried_again_and_given_up(models: Path, tmp_path: Path) -> None:
    """Nothing new between two kills: three tries. Something new each time: it goes on, but not for ever."""
    (a,) = scans(models, "a")
    cache = Cache(tmp_path / "cache")
    executor = InThisProcess(before=lambda _: KILLED)
    (result,) = Fleet([a], tmp_path / "none", cache, executor).run()
    assert (result.outcome, len(executor.done)) == ("failed", TRIES)
    assert not result.final

    def advancing(job: Job) -> Ended:
        with Ledger(job.out, {"any": 1}) as ledger:
            ledger.commit("x", [])
            with ledger._transaction():
                n = len(executor.done)
                ledger._db.execute("INSERT INTO units VALUES ('x', ?, '{}', '{}')", (str(n),))
        return Ended(4, "onnxspect: the worker was killed, as when memory runs out (in x)\n", 0.1)

    executor = InThisProcess(before=advancing)
    (result,) = Fleet([a], tmp_path / "some", cache, executor).run()
    assert (result.outcome, len(executor.done)) == ("failed", MOST_TRIES)
    assert "the worker was killed" in result.cause


def test_a_model_that_asks_for_nonsense_costs_the_others_nothing(
    models: Path, first: tuple[InThisProcess, Path, Cache, list[Result]], tmp_path: Path
) -> None:
    """What a stranger's worker may write is its own run folder: a request that no references can be made of, again and again."""
    _, _, _, results = first
    asked: list[Job] = []

    def before(job: Job) -> Ended | None:
        if job.model is not None and job.model.stem == "a" and job.shelf is not None:
            asked.append(job)
            job.out.mkdir(exist_ok=True)
            request = {"classes": 10**9, "names": None, "shape": [1, 8, 8], "size": None, "way": len(asked)}
            (job.out / REQUEST).write_text(json.dumps(request))
            return Ended(4, "onnxspect: its references are still to be made\n", 0.1)
        if job.model is not None and job.model.stem == "a":
            return Ended(1, "onnxspect: hostile\n", 0.1)  # a false status, without a report
        return None

    executor = InThisProcess(before=before)
    out = tmp_path / "out"
    shutil.copytree(first[2].folder / "references", tmp_path / "cache/references")
    found = Fleet(scans(models, "a", "b"), out, Cache(tmp_path / "cache"), executor).run()
    assert found[1].digest == results[1].digest
    assert found[0].outcome == "hostile"  # as its worker says; it is its own result alone
    assert len(asked) <= 2
    assert executor.kinds().count("references") == 1
    shelf = tmp_path / "cache/references"
    whole = [p for p in shelf.glob("*/*") if p.is_dir() and not p.name.endswith(".half")]
    assert len(whole) == 1


def test_a_scan_writes_to_nothing_that_others_read(first: tuple[InThisProcess, Path, Cache, list[Result]]) -> None:
    executor, out, cache, _ = first
    scanning = [j for j in executor.done if j.model is not None]
    assert {j.out.parent for j in scanning} == {out}
    assert len({j.out for j in scanning}) == len({j.key for j in scanning})
    for job in executor.done:
        written = [a.split("=", 1)[1] for a in job.arguments if a.startswith(("--out=", "--write=", "-o"))]
        assert written == [str(job.out)]
        assert job.model is None or not job.out.is_relative_to(cache.folder)


def test_files_of_the_shelf_are_copied_not_linked(first: tuple[InThisProcess, Path, Cache, list[Result]]) -> None:
    """A hard link would let a run's worker write into the shelf."""
    _, out, cache, results = first
    shared = [p for p in (cache.folder / "references").rglob("*") if p.is_file()]
    assert shared
    assert all(p.stat().st_nlink == 1 for p in shared)
    own = out / results[1].folder / "references/run.sqlite"
    assert os.stat(own).st_ino not in {p.stat().st_ino for p in shared}  # noqa: PTH116


def test_what_is_wrong_for_all_is_said_once_and_before_any_work(models: Path, tmp_path: Path) -> None:
    executor, wrong = InThisProcess(), {**options(models), "detector": ("reverse",)}
    wanted = [Wanted(models / f"{n}.onnx") for n in "abc"]
    with pytest.raises(OnnxspectError, match="unknown detector 'reverse'") as caught:
        Fleet(list(planned(wanted, wrong, 1)), tmp_path / "out", Cache(tmp_path / "cache"), executor, check=True).run()
    assert caught.value.hint.startswith("one of ")
    assert [j.key for j in executor.done] == ["options"]
    # Wrong for some: they are refused by it, and the others are scanned.
    executor = InThisProcess(before=lambda j: None if j.key == "options" else KILLED)
    own = tuple(wrong.items())
    both = [Wanted(models / "a.onnx"), *(Wanted(models / f"{n}.onnx", own) for n in "bc")]
    results = Fleet(
        list(planned(both, options(models), 1)), tmp_path / "out", Cache(tmp_path / "cache"), executor, check=True
    ).run()
    assert [r.outcome for r in results] == ["failed", "refused", "refused"]
    assert results[1].cause == "unknown detector 'reverse'"
    assert executor.kinds()[1:] == ["a"] * TRIES


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"data": "nowhere.npz"}, "--data nowhere.npz: no such"),
        ({}, "no clean samples"),
        ({"train": "x"}, "--train x: no"),
    ],
)
def test_a_path_that_is_not_there_is_said_once(option: dict[str, str], said: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match=said):
        scan_many(models, out=tmp_path / "out", cache=False, **option)
    assert not (tmp_path / "out").exists()
