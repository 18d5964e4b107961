"""`patch` and `verify` as jobs from paths: what is tried, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervised
from click.testing import CliRunner
from conftest import SIDE, quadrant_images, quadrant_model, saved
from onnx import helper, numpy_helper
from patch_support import (
    PLACE,
    TARGET,
    additive_trigger,
    case_of,
    channel_model,
    neuron_model,
    opened,
    patch_trigger,
    quantised,
    written,
)

from onnxspect.cli.main import cli, run
from onnxspect.engine.errors import InconclusiveError, Kind, OnnxspectError
from onnxspect.engine.jobs.patch import patch, read_recovered, try_methods
from onnxspect.engine.jobs.prove import load_trigger, prove
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.mitigation.neurons import layers, named_layer, switch_off
from onnxspect.engine.mitigation.registry import AUTO, METHODS, chosen
from onnxspect.engine.mitigation.strip import Strip
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject


def npz(samples: Samples, path: Path) -> Path:
    np.savez(path, images=samples.images, labels=samples.labels)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one planted neuron, data for it, and a finished scan of it."""
    folder = tmp_path_factory.mktemp("job")
    saved(neuron_model(), folder / "model.onnx")
    npz(quadrant_images(30, 0), folder / "known.npz")
    npz(quadrant_images(25, 2), folder / "unseen.npz")
    scan(folder / "model.onnx", folder / "known.npz", folder / "run", "quick", ["neural-cleanse"])
    own = dict(patch_trigger().arrays)
    np.savez(folder / "own.npz", mask=own["mask"], pattern=own["pattern"], target=TARGET)
    return folder


def left_behind(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name.endswith((".onnx", ".part"))}


def test_what_a_training_set_shows_of_an_unsuspected_class_is_no_trigger(work: Path, tmp_path: Path) -> None:
    """training-difference looks at every class; the difference of a clean one leads nowhere, so there is nothing to patch."""
    poisoned = quadrant_images(60, 3)
    rows = np.flatnonzero(poisoned.labels == TARGET)[::2]
    poisoned.images[(rows, 0, *PLACE)] = np.eye(2)
    train, run = npz(poisoned, tmp_path / "train.npz"), tmp_path / "run"
    scan(work / "model.onnx", work / "known.npz", run, "quick", ["training-difference"], train=train)
    (found,) = read_recovered(run, [TARGET]).triggers
    assert (found.target, found.smallest) == (TARGET, False)
    for other in set(range(4)) - {TARGET}:
        with pytest.raises(OnnxspectError, match=f"no trigger to class {other}"):
            read_recovered(run, [other])


def test_accuracy_alone_proves_no_patch(work: Path, tmp_path: Path) -> None:
    model = work / "model.onnx"
    copied = tmp_path / "copied.onnx"
    copied.write_bytes(model.read_bytes())
    with pytest.raises(OnnxspectError, match="no trigger to measure"):
        prove(copied, model, work / "unseen.npz")
    scan(model, work / "known.npz", tmp_path / "run", "quick", ["max-margin"])  # names nothing
    with pytest.raises(OnnxspectError, match="no trigger to measure"):
        prove(copied, model, work / "unseen.npz", tmp_path / "run")
    arguments = [
        "verify",
        str(copied),
        "--against",
        str(model),
        "--data",
        str(work / "unseen.npz"),
        "--rescan-out",
        "x",
    ]
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, OnnxspectError)
    assert "--rescan-out" in refused.exception.message


def test_samples_that_do_not_fit_a_proof(work: Path, tmp_path: Path) -> None:
    model, run, out = work / "model.onnx", work / "run", tmp_path / "out.onnx"
    few = npz(quadrant_images(5, 0), tmp_path / "few.npz")
    with pytest.raises(OnnxspectError, match="4 would be left to judge on"):
        patch(model, run, few, out, targets=[TARGET])
    every = quadrant_images(120, 0)
    alone = npz(every.take(np.flatnonzero(every.labels == TARGET)), tmp_path / "alone.npz")
    with pytest.raises(OnnxspectError, match=f"no samples of any class but {TARGET}"):
        patch(model, run, alone, out, "prune", targets=[TARGET])
    beyond = quadrant_images(10, 0)
    beyond.labels[0] = 4
    with pytest.raises(OnnxspectError, match="label 4, but"):
        prove(model, model, npz(beyond, tmp_path / "beyond.npz"), trigger=work / "own.npz")
    assert not out.exists()


def test_auto_keeps_the_first_that_meets_the_goals_and_says_what_each_gave(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work / "model.onnx").read_bytes()
    out = tmp_path / "patched.onnx"
    done = patch(work / "model.onnx", work / "run", work / "known.npz", out, targets=[TARGET])
    assert done.proof.holds
    assert [a.method for a in done.attempts] == [n for n, e in METHODS.items() if e.automatic][: len(done.attempts)]
    assert done.method == done.attempts[-1].method
    assert all(a.outcome.startswith(f"{a.method}: ") for a in done.attempts)
    assert json.loads(json.dumps(done.describe()))["attempts"][-1]["proof"]["holds"]
    assert (work / "model.onnx").read_bytes() == before
    metadata = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert metadata["onnxspect.method"] == done.method
    # The attacker's own trigger, on images that nothing has seen.
    proof = prove(out, work / "model.onnx", work / "unseen.npz", work / "run", work / "own.npz")
    planted = next(t for t in proof.triggers if t.name == "own")
    assert (planted.before, planted.after) == (1.0, 0.0)
    # The same by the command.
    arguments = ["patch", work / "model.onnx", "--run", work / "run", "--data", work / "known.npz", "--target", TARGET]
    arguments += ["--method", done.method, "-o", tmp_path / "again.onnx", "--quiet"]
    assert run([str(a) for a in arguments]) == 0
    assert "PROVEN" in capsys.readouterr().out
    assert (tmp_path / "again.onnx").is_file()


def test_a_patch_that_time_alone_prevents_asks_for_time(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="left out: it takes about") as caught:
        patch(work / "model.onnx", work / "run", work / "known.npz", tmp_path / "p.onnx", budget=1e-3)
    assert caught.value.hint.startswith("nothing was written; --budget 1m")


def test_a_worse_model_is_not_written(work: Path, tmp_path: Path) -> None:
    """Fine-tuning, the control, leaves the trigger alive: nothing is written, and what it gave is said."""
    out = tmp_path / "patched.onnx"
    with pytest.raises(
        OnnxspectError, match=r"misses its goals and is not written: fine-tune: triggers at most"
    ) as caught:
        patch(work / "model.onnx", work / "run", work / "known.npz", out, "fine_tune", targets=[TARGET])
    assert caught.value.kind is Kind.INCONCLUSIVE
    assert left_behind(tmp_path) == set()


def test_a_file_that_does_not_withstand_a_new_search_is_kept_only_for_want_of_a_better(tmp_path: Path) -> None:
    """Two neurons know the trigger, by two halves of the patch; the case names one half. Pruning its neuron meets the
    goals, and a new search finds the other."""
    weights = np.zeros((SIDE, SIDE, 6), np.float32)
    weights[..., :5] = numpy_helper.to_array(neuron_model().graph.initializer[0]).reshape(SIDE, SIDE, 5)
    weights[..., 4] = 0
    weights[1, 1, 4], weights[1, 2, 4] = 40.0, -40.0
    weights[6, 6, 5], weights[6, 5, 5] = 40.0, -40.0
    second = np.concatenate([np.eye(4), np.tile(np.eye(4)[TARGET], (2, 1))]).astype(np.float32)
    model = neuron_model()
    for i, (name, value) in enumerate(
        (("first", weights.reshape(-1, 6)), ("bias", np.zeros(6, np.float32)), ("second", second))
    ):
        model.graph.initializer[i].CopyFrom(numpy_helper.from_array(value, name))
    subject = opened(model, tmp_path)
    mask, pattern = np.zeros((1, SIDE, SIDE), np.float32), np.zeros((1, SIDE, SIDE), np.float32)
    mask[0, 1, 1:3], pattern[0, 1, 1] = 1.0, 1.0
    case = case_of(subject, type(patch_trigger())(TARGET, {"mask": mask, "pattern": pattern}))
    prune = chosen("prune")
    best, attempts = try_methods([*prune, *prune], case, "e", Goals())
    assert best is not None
    assert len(attempts) == 2
    assert attempts[0].proof is not None
    assert attempts[0].proof.holds
    assert attempts[0].left is not None
    assert attempts[0].left < 2.5
    assert "a new search still finds a trigger" in attempts[0].outcome
    assert not attempts[0].describe()["withstands_new_search"]
    assert attempts[0].withstands is False
    assert not attempts[0].good


def test_of_two_patches_the_better_one_is_kept(tmp_path: Path) -> None:
    """The good one first, then what withstands a new search, what stops the triggers, and what does less harm."""
    subject = opened(neuron_model(), tmp_path)
    _, (attempt,) = try_methods(chosen("prune"), case_of(subject), "e", Goals())
    proof = attempt.proof
    assert proof is not None
    assert attempt.good
    changed = replace(attempt, proof=replace(proof, agreement=0.995))
    weak = replace(attempt, withstands=False)
    alive = replace(attempt, proof=replace(proof, triggers=tuple(replace(t, after=0.015) for t in proof.triggers)))
    assert changed.good
    assert not weak.good
    assert alive.stops_triggers
    assert not alive.good  # judged on what it was chosen by: little may have changed
    assert replace(alive, judged_apart=True).good
    order = [weak, alive, changed, attempt]
    assert sorted([attempt, weak, changed, alive], key=lambda a: a.rank) == order


def test_accuracy_lost_is_estimated_from_changed_answers_too(tmp_path: Path) -> None:
    """Few samples are believed little: two answers more wrong of a hundred, with four changed, are not two points lost."""
    subject = opened(neuron_model(), tmp_path)
    _, (attempt,) = try_methods(chosen("prune"), case_of(subject), "e", Goals())
    assert attempt.proof is not None

    def lost(measured: float, changed: float, samples: int, apart: bool = True) -> float:
        assert attempt.proof is not None
        proof = replace(
            attempt.proof, accuracy_before=0.9, accuracy_after=0.9 - measured, agreement=1 - changed, samples=samples
        )
        return replace(attempt, proof=proof, judged_apart=apart).lost

    assert lost(0.0, 0.0, 100) == 0.0
    assert 0.0101 < lost(0.02, 0.04, 100) < 0.0125
    assert lost(0.02, 0.04, 100_000) == pytest.approx(0.02, rel=0.01)
    assert lost(0.0, 0.04, 100, apart=False) == pytest.approx(0.01)
    assert lost(0.0, 0.08, 100) > lost(0.02, 0.04, 100)
    assert replace(attempt, proof=None).lost == float("inf")


def test_proactive_takes_the_trigger_of_every_class(work: Path) -> None:
    every = read_recovered(work / "run", range(4))
    assert {t.target for t in every.triggers} == set(range(4))
    with pytest.raises(OnnxspectError, match="class 9, but the model has 4 classes"):
        read_recovered(work / "run", [9])


def test_methods_and_their_settings() -> None:
    assert [m.name for m in chosen(AUTO)] == [n for n, e in METHODS.items() if e.automatic]
    assert all(chosen(name)[0].name == name for name in METHODS)
    assert chosen("unlearn", rounds=1, batch_norm="reestimate")[0].rounds == 1  # type: ignore[attr-defined]
    assert len(chosen(AUTO, rounds=1)) > 1
    with pytest.raises(OnnxspectError, match="method prune has no setting rounds"):
        chosen("prune", rounds=1)
    with pytest.raises(OnnxspectError, match="unknown method 'pray'"):
        chosen("pray")


def test_a_guarded_file_from_the_command_line(work: Path, tmp_path: Path) -> None:
    """The patch as a user starts it: the locked-in worker may write its output, and cannot read it again."""
    out = tmp_path / "guarded.onnx"
    common = ["--run", str(work / "run"), "--data", str(work / "known.npz"), "--device", "cpu"]
    arguments = ["patch", str(work / "model.onnx"), *common, "-o", str(out), "--method", "input_filter"]
    done = supervised.command(*arguments, "--target", TARGET, "--false-positives", "0.1", "--json")
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert result["method"] == "input-filter"
    assert result["proof"]["additions"][0] == "outputs backdoor_score and rejected added"
    kept = json.loads((work / "run" / "patch.json").read_text())
    assert kept["patched"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert kept["result"]["notes"] == result["proof"]["notes"]
    arguments = ["verify", str(out), "--against", str(work / "model.onnx"), "--data", str(work / "unseen.npz")]
    arguments += ["--trigger", str(work / "own.npz"), "--max-rejected", "0.2", "--strip", "-q", "--device", "cpu"]
    shown = CliRunner().invoke(cli, arguments)
    assert re.search(r"of which the filter rejects +100\.0%", shown.stdout)
    assert "has to read its output `rejected`" in shown.stdout
    assert "latency, 1 image a call" in shown.stdout
    assert "STRIP (32 passes an image)" in shown.stdout


def test_diff_tells_what_a_patch_added_from_what_it_changed(tmp_path: Path) -> None:
    subject = opened(channel_model(branch=True), tmp_path)
    layer = named_layer(layers(subject, every=True), "sum")
    out = written(subject, switch_off(subject, layer, np.array([False, True])), tmp_path)
    done = CliRunner().invoke(cli, ["diff", str(tmp_path / "model.onnx"), str(out), "--json"], standalone_mode=False)
    assert done.return_value == 1
    found = json.loads(done.stdout)["differences"]
    assert [d["text"] for d in found if d["kind"] == "added"] == ["node onnxspect/mask/sum/Mul (Mul) added"]
    assert {d["kind"] for d in found} == {"added", "metadata"}


def test_a_fresh_scan_counts(work: Path, tmp_path: Path) -> None:
    """What the scan says of the patched file is a goal like the others; it is asked with the right preprocessing."""
    model = work / "model.onnx"
    found = []

    def rescan(path: Path, spec: InputSpec) -> dict[str, object]:
        assert (path, spec.name) == (model, read_recovered(work / "run").scan.spec.name)
        found.append(
            scan(path, work / "known.npz", tmp_path / "again", "quick", ["reverse-engineering"], spec=spec).report
        )
        return found[-1]

    proof = prove(model, model, work / "unseen.npz", work / "run", rescan=rescan)
    assert proof.rescan is not None
    assert (proof.rescan.verdict, list(proof.rescan.targets)) == (found[0]["verdict"], found[0]["targets"])
    for verdict, holds in (("clean", True), ("inconclusive", True), ("backdoored", False)):
        result = replace(proof, triggers=(), rescan=replace(proof.rescan, verdict=verdict, reasons=("it is so",)))
        assert result.holds is holds
    assert result.failures == ("a fresh scan calls the patched file backdoored (it is so)",)


def test_a_fresh_scan_without_a_verdict_leaves_the_proof(work: Path) -> None:
    """Too few samples for a scan stop the scan, and not what was measured before it; what is wrong with the input stops all."""
    model = work / "model.onnx"

    def stopping(kind: type[OnnxspectError]) -> Callable[[Path, InputSpec], dict[str, object]]:
        def rescan(*_: object) -> dict[str, object]:
            raise kind("too few clean samples")

        return rescan

    proof = prove(model, model, work / "unseen.npz", work / "run", rescan=stopping(InconclusiveError))
    assert proof.rescan is not None
    assert (proof.rescan.verdict, proof.rescan.reasons) == ("inconclusive", ("too few clean samples",))
    assert proof.triggers
    with pytest.raises(OnnxspectError, match="too few"):
        prove(model, model, work / "unseen.npz", work / "run", rescan=stopping(OnnxspectError))


def test_latency_and_strip_are_measured(work: Path) -> None:
    model = work / "model.onnx"
    proof = prove(
        model, model, work / "unseen.npz", trigger=[work / "own.npz", work / "own.npz"], strip=Strip(blends=8)
    )
    assert [entry.batch for entry in proof.latency] == [1, 32]
    assert all(0 < entry.before < 1000 and 0 < entry.after < 1000 for entry in proof.latency)
    assert {t.name for t in proof.triggers} == {"own", "own'"}
    assert proof.strip is not None
    assert proof.strip.blends == 8
    assert set(proof.strip.missed) == {"own", "own'"}
    assert json.loads(json.dumps(proof.describe()))["strip"]["blends"] == 8


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mask": np.ones((1, 9, 9)), "pattern": np.ones((1, SIDE, SIDE)), "target": 2}, r"mask has shape \(1, 9, 9\)"),
        ({"delta": np.ones((3, SIDE, SIDE)), "target": 2}, r"delta has shape \(3, 8, 8\)"),
        ({"mask": np.ones((1, SIDE, SIDE)), "pattern": 2 * np.ones((1, SIDE, SIDE)), "target": 2}, "outside"),
        ({"delta": np.full((1, SIDE, SIDE), np.nan), "target": 2}, "outside"),
        ({"delta": np.ones((1, SIDE, SIDE))}, "a trigger has `target`"),
        ({"delta": np.ones((1, SIDE, SIDE)), "target": [1, 2]}, "not one class index"),
        ({"displacement": np.ones((1, SIDE, SIDE)), "target": 2}, r"displacement has shape \(1, 8, 8\)"),
        ({"displacement": np.full((2, SIDE, SIDE), 9.0), "target": 2}, r"outside \[-8, 8\]"),
    ],
    ids=["mask", "delta", "range", "nan", "no-target", "two-targets", "displacement", "beyond-the-picture"],
)
def test_a_trigger_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(OnnxspectError, match=complaint):
        load_trigger(tmp_path / "bad.npz", (1, SIDE, SIDE))


def test_a_trigger_to_a_class_that_is_not_there(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", delta=np.ones((1, SIDE, SIDE)), target=4)
    with pytest.raises(OnnxspectError, match="target 4, but the model has 4 classes"):
        prove(work / "model.onnx", work / "model.onnx", work / "unseen.npz", trigger=tmp_path / "bad.npz")


def test_an_additive_trigger_of_ones_own(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "added.npz", delta=additive_trigger().arrays["delta"][0], target=TARGET)
    model = work / "model.onnx"
    proof = prove(model, model, work / "unseen.npz", trigger=tmp_path / "added.npz")
    assert proof.triggers[0].before > 0.9
    assert not proof.holds


def test_a_warp_of_ones_own(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "warp.npz", displacement=np.zeros((2, SIDE, SIDE)), target=TARGET)
    model = work / "model.onnx"
    proof = prove(model, model, work / "unseen.npz", trigger=tmp_path / "warp.npz")
    assert proof.triggers[0].before == 0  # nothing is moved


def test_the_run_of_another_model(work: Path, tmp_path: Path) -> None:
    other = saved(quadrant_model(), tmp_path / "other.onnx")
    with pytest.raises(OnnxspectError, match="the run belongs to another model"):
        patch(other, work / "run", work / "known.npz", tmp_path / "p.onnx", targets=[TARGET])
    with pytest.raises(OnnxspectError, match="the run belongs to another model"):
        prove(other, other, work / "unseen.npz", work / "run")
    assert left_behind(tmp_path) == {"other.onnx"}


@pytest.mark.parametrize("method", ["unlearn", "clp", "ibau", "fine-tune"])
def test_quantised_weights_are_refused_with_the_reason(tmp_path: Path, method: str) -> None:
    subject = Subject.from_onnx(saved(quantised(), tmp_path / "model.onnx"))
    with pytest.raises(OnnxspectError, match="its weights are quantised") as caught:
        try_methods(chosen(method), case_of(subject), "e", Goals())
    assert "--method input-filter" in caught.value.hint


def test_weights_that_are_inputs_are_refused(tmp_path: Path) -> None:
    model = neuron_model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    subject = opened(model, tmp_path)
    with pytest.raises(OnnxspectError, match="the weights first, bias are inputs of the model"):
        try_methods(chosen("prune"), case_of(subject), "e", Goals())
    # Before IR 4 every weight had to be listed so: no reason to refuse.
    model.ir_version = 3
    best, _ = try_methods(
        chosen("prune"), case_of(Subject.from_onnx(saved(model, tmp_path / "old.onnx"))), "e", Goals()
    )
    assert best is not None


def test_targets_that_cannot_be_written_are_refused_before_any_work(work: Path, tmp_path: Path) -> None:
    def refused(out: Path, complaint: str) -> None:
        with pytest.raises(OnnxspectError, match=complaint):
            patch(work / "model.onnx", work / "run", work / "known.npz", out, targets=[TARGET])

    refused(work / "model.onnx", "would overwrite the original")
    refused(tmp_path / "no" / "p.onnx", "no such folder")
    refused(tmp_path, "is a folder")
    if sys.platform == "linux":
        refused(Path("/proc/p.onnx"), "cannot be written")  # nobody may write there, root included
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        refused(tmp_path / "locked" / "p.onnx", "cannot be written")
    assert left_behind(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_old_file_and_no_part(work: Path, tmp_path: Path) -> None:
    """The write fails half-way: the file that was there stays, whole."""
    subject = Subject.from_onnx(work / "model.onnx")
    assert subject.file is not None
    out = tmp_path / "patched.onnx"
    out.write_bytes(b"what was there")
    script = (
        "import resource, sys; from pathlib import Path; import onnx\n"
        "from onnxspect.converters.file.onnx_file import read_onnx; from onnxspect.engine.jobs.export import write_model\n"
        "file = read_onnx(Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "write_model(file.proto, file, Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(work / "model.onnx"), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "cannot be written" in done.stderr
    assert out.read_bytes() == b"what was there"
    assert left_behind(tmp_path) == {"patched.onnx"}


def test_too_few_samples_and_wrong_labels(work: Path, tmp_path: Path) -> None:
    few = npz(quadrant_images(1, 0), tmp_path / "few.npz")
    wrong = quadrant_images(4, 0)
    bad = npz(Samples(wrong.images, wrong.labels + 3), tmp_path / "bad.npz")
    for data, complaint in ((few, "too few to patch and to prove"), (bad, "label 6, but .* has 4 classes")):
        with pytest.raises(OnnxspectError, match=complaint):
            patch(work / "model.onnx", work / "run", data, tmp_path / "p.onnx", targets=[TARGET])
