"""The ledger: what was committed survives anything, what was not is never half there."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from run_folder_support import whole_report

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.search.search import Unit
from onnxspect.engine.store import FILE, Ledger, write_atomically

FINGERPRINT = {"model": "abc", "seed": 0, "preset": "quick"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")


def unit(target: int, source: int | None = None, **arrays: np.ndarray) -> UnitEvidence:
    return UnitEvidence(
        unit=Unit(target, source),
        measurements=measured(l1=0.1 + target, third=1 / 3),
        found=True,
        converged=target % 2 == 0,
        steps=100 + target,
        search_success=0.99,
        held_out_success=None if target == 1 else 2 / 3,
        held_out=17,
        trigger=arrays,
        seconds=0.25,
    )


def array(i: int) -> np.ndarray:
    return np.random.default_rng(i).standard_normal((1, 8, 8)).astype(np.float32)


def same(a: UnitEvidence, b: UnitEvidence) -> None:
    assert {k: v for k, v in vars(a).items() if k != "trigger"} == {k: v for k, v in vars(b).items() if k != "trigger"}
    assert a.trigger.keys() == b.trigger.keys()
    for name, value in a.trigger.items():
        assert value.dtype == b.trigger[name].dtype
        assert value.shape == b.trigger[name].shape
        assert value.tobytes() == b.trigger[name].tobytes()


def test_round_trip(tmp_path: Path) -> None:
    units = [unit(0, mask=array(0), pattern=array(1)), unit(1, source=4, delta=array(2)), unit(2)]
    with Ledger(tmp_path / "run", FINGERPRINT) as ledger:
        assert ledger.units("nc") == {}
        ledger.commit("nc", units[:1])
        ledger.commit("nc", units[1:])
        ledger.commit("other", [unit(0)])
    with Ledger(tmp_path / "run", FINGERPRINT) as ledger:
        found = ledger.units("nc")
        assert list(ledger.units("other")) == ["any->0"]
    assert set(found) == {"any->0", "4->1", "any->2"}
    for u in units:
        same(u, found[u.unit.key])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int64, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    st.floats(allow_nan=False),
)
def test_any_array_and_number_round_trips(tmp_path: Path, value: np.ndarray, statistic: float) -> None:
    stored = UnitEvidence(Unit(0), measured(s=statistic), True, True, 1, 1.0, None, 0, {"a": value, "t": value.T})
    with Ledger(tmp_path / "run", FINGERPRINT) as ledger:
        ledger.commit("nc", [stored])
        same(stored, ledger.units("nc")["any->0"])


def test_committing_again_replaces(tmp_path: Path) -> None:
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        ledger.commit("nc", [unit(0, mask=array(0))])
        ledger.commit("nc", [unit(0, mask=array(1))])
        same(unit(0, mask=array(1)), ledger.units("nc")["any->0"])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "other"])
def test_a_damaged_array_means_not_finished(tmp_path: Path, damage: str) -> None:
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        ledger.commit("nc", [unit(0, mask=array(0)), unit(1, mask=array(1))])
        before = set((tmp_path / "arrays").iterdir())
        ledger.commit("nc", [unit(2, mask=array(2), pattern=array(0))])
        (file,) = set((tmp_path / "arrays").iterdir()) - before
        data = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            flipped = data[:-1] + bytes([data[-1] ^ 1])
            other = sorted(before)[0].read_bytes()
            file.write_bytes({"flip": flipped, "cut": data[:-4], "empty": b"", "other": other}[damage])
        assert set(ledger.units("nc")) == {"any->0", "any->1"}
        ledger.commit("nc", [unit(2, mask=array(2), pattern=array(0))])
        same(unit(2, mask=array(2), pattern=array(0)), ledger.units("nc")["any->2"])


def test_another_fingerprint_is_refused_by_name(tmp_path: Path) -> None:
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        ledger.commit("nc", [unit(0)])
    with pytest.raises(OnnxspectError, match=r"other model, seed") as caught:
        Ledger(tmp_path, FINGERPRINT | {"model": "xyz", "seed": 1})
    assert "preset" not in caught.value.message
    assert "--out" in caught.value.hint
    with pytest.raises(OnnxspectError, match="other threads"):
        Ledger(tmp_path, FINGERPRINT | {"threads": 2})
    with Ledger(tmp_path, FINGERPRINT) as ledger:  # the refusals changed nothing and hold no lock
        assert set(ledger.units("nc")) == {"any->0"}


@posix
def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, FINGERPRINT) as first:
        first.commit("nc", [unit(0)])
        with pytest.raises(OnnxspectError, match="another scan is running"):
            Ledger(tmp_path, FINGERPRINT)
        with Ledger(tmp_path) as reader:  # reading a running scan is fine
            assert set(reader.units("nc")) == {"any->0"}
    Ledger(tmp_path, FINGERPRINT).close()


def test_no_run_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(OnnxspectError, match="no run in this folder"):
            Ledger(folder)
    assert list(tmp_path.iterdir()) == []


def test_facts_and_report(tmp_path: Path) -> None:
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        assert ledger.fact("x") is None
        with pytest.raises(OnnxspectError, match="has not finished"):
            ledger.report()
        ledger.set_fact("report", json.dumps(whole_report()))
        assert ledger.report() == whole_report()


def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database at all" * 200)
    for fingerprint in (None, FINGERPRINT):
        with pytest.raises(OnnxspectError, match="not a run of onnxspect"):
            Ledger(tmp_path, fingerprint)


@pytest.mark.parametrize("fingerprint", [None, FINGERPRINT])
def test_a_database_damaged_inside(tmp_path: Path, fingerprint: dict[str, object] | None) -> None:
    """The header is intact, the pages are not: whatever touches them, the user reads one line and not a traceback."""
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        ledger.commit("nc", [unit(i) for i in range(200)])
    data = bytearray((tmp_path / FILE).read_bytes())
    data[4096:] = np.random.default_rng(0).bytes(len(data) - 4096)
    (tmp_path / FILE).write_bytes(bytes(data))
    with pytest.raises(OnnxspectError), Ledger(tmp_path, fingerprint) as ledger:
        ledger.units("nc")


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OnnxspectError, match="cannot keep a run there"):
        Ledger(tmp_path / "file" / "run", FINGERPRINT)


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@posix
def test_written_file_has_the_users_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("case", ["parent is a file", "no such folder", "name too long", "is a folder"])
def test_failed_write_leaves_nothing(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "content").write_text("x")
    path = {
        "parent is a file": tmp_path / "file" / "out",
        "no such folder": tmp_path / "nothing" / "out",
        "name too long": tmp_path / ("n" * 300),
        "is a folder": tmp_path / "full",
    }[case]
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(OnnxspectError, match="cannot be written"):
        write_atomically(path, b"data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.store import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), b"n" * 100_000)
except OnnxspectError as error:
    print(error)
"""


@posix
def test_a_write_that_fails_half_way(tmp_path: Path) -> None:
    """No more room after the first thousand bytes: the old file stays, nothing else does."""
    path = tmp_path / "out.onnx"
    path.write_bytes(b"the old one")
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "out.onnx: cannot be written" in done.stdout
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


_FULL_LEDGER = """
import resource, signal, sys
from pathlib import Path
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.store import Ledger
ledger = Ledger(Path(sys.argv[1]), {"model": "abc", "seed": 0, "preset": "quick"})
ledger.set_fact("small", "kept")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    ledger.set_fact("large", "x" * 1_000_000)
except OnnxspectError as error:
    print(error)
print(ledger.fact("large"), ledger.fact("small"))
"""


@posix
def test_a_commit_that_fails_half_way(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_LEDGER, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write the run" in done.stdout
    assert done.stdout.splitlines()[-1] == "None kept"
    with Ledger(tmp_path, FINGERPRINT) as ledger:
        assert ledger.fact("small") == "kept"
        assert ledger.fact("large") is None


_ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.search.search import Unit
from onnxspect.engine.store import Ledger
ledger = Ledger(Path(sys.argv[1]), {"model": "abc", "seed": 0, "preset": "quick"})
for i in range(100_000):
    value = np.random.default_rng(i).standard_normal((1, 8, 8)).astype(np.float32)
    ledger.commit("nc", [UnitEvidence(Unit(i), measured(l1=float(i)), True, True, i, 1.0, None, 0, {"mask": value})])
    print(i, flush=True)
"""


@posix
def test_kill_in_the_middle_of_commits(tmp_path: Path) -> None:
    for round_number, commits in enumerate((3, 24)):
        folder = tmp_path / str(round_number)
        with subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            promised = [int(child.stdout.readline()) for _ in range(commits)]
            os.kill(child.pid, signal.SIGKILL)
            promised += [int(line) for line in child.stdout if line.endswith("\n")]
            assert child.wait(30) == -signal.SIGKILL
        with Ledger(folder, FINGERPRINT) as ledger:  # the dead process left no lock
            found = ledger.units("nc")
            assert set(found) >= {f"any->{i}" for i in promised}
            for i in range(len(found)):  # and whatever else is there is whole
                assert found[f"any->{i}"].measurements == measured(l1=float(i))
                np.testing.assert_array_equal(found[f"any->{i}"].trigger["mask"], array(i))
            ledger.commit("nc", [unit(0, mask=array(7))])
        with sqlite3.connect(folder / FILE) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT count(*) FROM units").fetchone() == (len(found),)
        db.close()


def test_conclusions_are_kept_beside_the_stages(tmp_path: Path) -> None:
    with Ledger(tmp_path, {"a": 1}) as ledger:
        ledger.commit("nc", [unit(0, mask=array(0))])
        assert ledger.evidence("nc") == []
        ledger.keep_evidence("nc", [unit(0, mask=array(1)), unit(1, mask=array(2))])
    with Ledger(tmp_path) as ledger:
        assert set(ledger.units("nc")) == {"any->0"}
        first, second = ledger.evidence("nc")
        same(unit(0, mask=array(1)), first)
        same(unit(1, mask=array(2)), second)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    with pytest.raises(OnnxspectError, match="holds no run, but 0 and 1 more"):
        Ledger(tmp_path, FINGERPRINT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


def test_what_was_refused_before_it_found_anything_leaves_the_folder_free(tmp_path: Path) -> None:
    other = FINGERPRINT | {"seed": 1}
    with Ledger(tmp_path / "run", FINGERPRINT):
        pass
    with Ledger(tmp_path / "run", other) as ledger:
        ledger.commit("nc", [unit(0)])
    with pytest.raises(OnnxspectError, match="holds a run with other seed"):
        Ledger(tmp_path / "run", FINGERPRINT)
    with Ledger(tmp_path / "run", other) as ledger:
        assert len(ledger.units("nc")) == 1


def test_where_a_file_lies_is_not_what_it_is(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run", FINGERPRINT | {"model path": "a.onnx"}) as ledger:
        ledger.commit("nc", [unit(0)])
    with Ledger(tmp_path / "run", FINGERPRINT | {"model path": "b.onnx"}) as ledger:
        assert len(ledger.units("nc")) == 1


def test_an_unfinished_run_may_go_on_on_another_device(tmp_path: Path) -> None:
    """A GPU that was lost takes nothing with it that was found; which devices there were is kept."""
    on_gpu = {"model": "abc", "device": "cuda", "threads": 0}
    on_cpu = on_gpu | {"device": "cpu", "threads": 2}
    with Ledger(tmp_path / "run", on_gpu, movable=True) as ledger:
        ledger.commit("nc", [unit(0)])
        assert ledger.devices == []
    with pytest.raises(OnnxspectError, match="other device, threads"):
        Ledger(tmp_path / "run", on_cpu)
    with Ledger(tmp_path / "run", on_cpu, movable=True) as ledger:
        assert len(ledger.units("nc")) == 1
        assert ledger.devices == ["cuda", "cpu"]
    with Ledger(tmp_path / "run", on_cpu, movable=True) as ledger:
        assert ledger.devices == ["cuda", "cpu"]
        ledger.set_fact("report", "{}")
    with pytest.raises(OnnxspectError, match="other device"):
        Ledger(tmp_path / "run", on_gpu, movable=True)
    with pytest.raises(OnnxspectError, match="other model"):
        Ledger(tmp_path / "run", on_cpu | {"model": "def"}, movable=True)
