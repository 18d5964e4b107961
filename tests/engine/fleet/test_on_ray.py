"""A real Ray cluster on this machine, of several nodes that are killed: the same reports, each once. `make ray` runs it."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_model, saved
from fleet_support import InThisProcess

from onnxspect.engine.fleet.cache import Cache
from onnxspect.engine.fleet.fleet import Fleet
from onnxspect.engine.fleet.local import Size
from onnxspect.engine.fleet.models import Wanted
from onnxspect.engine.fleet.on_ray import _lay_out, _relative, carry_out, on_ray
from onnxspect.engine.fleet.plan import planned

full = pytest.mark.skipif(not os.environ.get("ONNXSPECT_FULL"), reason="takes minutes: make ray")
NAMES = "abcd"
OPTIONS = {"data": ("data.npz",), "preset": ("quick",), "detector": ("reverse-engineering",), "device": ("cpu",)}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four models and samples, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES):
        saved(quadrant_model(None if i == 1 else i), tmp_path / f"{name}.onnx")
    samples = quadrant_images(30)
    np.savez(tmp_path / "data.npz", images=samples.images, labels=samples.labels)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that takes no tasks, and three nodes with a core each."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # its own spelling; else whatever runs beside the test comes first
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@full
def test_nodes_are_killed_and_nothing_is_lost_or_doubled(models: Path, cluster: Any) -> None:
    scans = list(planned([Wanted(Path(f"{n}.onnx")) for n in NAMES], OPTIONS, 1))
    killed: list[float] = []
    over = threading.Event()

    def kill() -> None:
        """Two of the three nodes, one after the other, while they work."""
        for node in list(cluster.worker_nodes)[:2]:
            if over.wait(15):
                return
            cluster.remove_node(node, allow_graceful=False)
            killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with on_ray("auto", Size(3, 1, 2 << 30), "cpu") as executor:
        found = Fleet(scans, Path("far"), Cache(models / "far-cache"), executor).run()
    over.set()
    killer.join()
    assert len(killed) == 2
    near = Fleet(scans, Path("near"), Cache(models / "near-cache"), InThisProcess()).run()
    assert [r.outcome for r in found] == [r.outcome for r in near]
    assert all(r.digest for r in found)
    assert [r.digest for r in found] == [r.digest for r in near]
    with sqlite3.connect("far/index.sqlite") as db:
        assert db.execute("SELECT count(*) FROM results").fetchone() == (len(NAMES),)
        ended = db.execute("SELECT key, count(*) FROM attempts WHERE status IN (0, 1) GROUP BY key").fetchall()
        assert {n for _, n in ended} == {1}  # each model, and the references, came to their end once
        assert len(ended) == len(NAMES) + 1
    for a, b in zip(found, near, strict=True):
        one, two = (sqlite3.connect(f"{side}/{r.folder}/run.sqlite") for side, r in (("far", a), ("near", b)))
        facts = [
            dict(db.execute("SELECT name, value FROM facts WHERE name = 'fingerprint'").fetchall()) for db in (one, two)
        ]
        units = [db.execute("SELECT detector, unit, arrays FROM units ORDER BY 1, 2").fetchall() for db in (one, two)]
        assert facts[0] == facts[1]
        assert units[0] == units[1]


def test_paths_lie_on_a_node_as_they_lie_here(tmp_path: Path) -> None:
    absolute, relative = tmp_path / "m.onnx", Path("d.npz")
    given = ("scan", f"--data={relative}", f"--out={tmp_path}/runs/m", "--seed=1", "--", str(absolute))
    assert _relative(given, [absolute, relative, tmp_path / "runs/m"], tmp_path / "here") == (
        "scan", "--data=d.npz", "--out=../runs/m", "--seed=1", "--", "../m.onnx"
    )  # fmt: skip


def test_nothing_is_laid_out_elsewhere(tmp_path: Path) -> None:
    from onnxspect.engine.errors import OnnxspectError

    for name in (f"{tmp_path}/in/../../x", "/etc/x", f"{tmp_path}/inside/x"):
        with pytest.raises(OnnxspectError, match="leads out"):
            _lay_out({name: b""}, tmp_path / "in")
    _lay_out({f"{tmp_path}/in/a/b": b"x"}, tmp_path / "in")
    assert (tmp_path / "in/a/b").read_bytes() == b"x"


def test_a_node_of_another_version_refuses() -> None:
    from onnxspect.engine.fleet.on_ray import Parcel

    returned = carry_out(Parcel(("scan",), "/x", "/x/out", 1, "other"))
    assert (returned.ended.status, returned.files) == (4, {})
    assert "another version" in returned.ended.cause
