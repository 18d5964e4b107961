"""Kept evidence is judged again: the boards are what is committed, and so is all that is derived from them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from benchmark_scripts import script
from tolerances import REORDERED_64, SIX_DIGITS, TAIL_64

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "evidence.schema.json").read_text())


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    """The script."""
    return script("replay")


@pytest.fixture(scope="module")
def rows(replay: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    out = tmp_path_factory.mktemp("replay") / "replay.json"
    assert replay.main(["--bank", "--out", str(out)]) == 0
    return list(json.loads(out.read_text())["models"])


def test_the_boards_are_the_committed_ones(rows: list[dict[str, object]]) -> None:
    """A change of the statistics shows here: python benchmarks/replay.py --bank --out benchmarks/results/replay.json."""
    committed = json.loads((ROOT / "benchmarks" / "results" / "replay.json").read_text())["models"]
    assert [(r["board"], r["name"], r["verdict"], r["found"]) for r in rows] == [
        (r["board"], r["name"], r["verdict"], r["found"]) for r in committed
    ]
    assert [r["log10_p"] for r in rows] == pytest.approx([r["log10_p"] for r in committed], rel=TAIL_64, abs=TAIL_64)


def scanned(name: str, samples: int, infected: bool, found: list[int]) -> dict[str, object]:
    """A row of a model of the judging half, whose target is class 1."""
    verdict = {"verdict": "backdoored" if found else "clean", "found": found, "targets": [1] if infected else []}
    return {
        "board": f"bank-standard-{samples}", "name": name, "sha256": name, "half": "judging", "samples": samples, "infected": infected,
        "recorded": {"preset": "standard"}, "log10_p": -3.0 if found else 0.0, **verdict,
    }  # fmt: skip


def test_a_model_on_fewer_samples_is_no_further_model(replay: ModuleType) -> None:
    rows = [scanned("a", 1000, True, [1]), scanned("b", 1000, False, []), scanned("c", 400, True, [])]
    fewer = [scanned("a", 50, True, []), scanned("b", 50, False, [2]), scanned("a", 500, True, [1])]
    again = replay.on_fewer_samples([*rows, *fewer])
    assert again == {("bank-standard-50", "a"), ("bank-standard-50", "b"), ("bank-standard-500", "a")}
    found = replay.by_samples([*rows, *fewer], again)
    assert list(found) == ["50", "500", "1000"]  # of "a" alone, which was scanned on every number of them
    assert [(of["infected"], of["found_with_right_target"], of["clean"]) for of in found.values()] == [
        (1, 0, 0),
        (1, 1, 0),
        (1, 1, 0),
    ]
    assert replay.by_samples(rows, replay.on_fewer_samples(rows)) == {}


def test_scores_are_those_that_the_scan_recorded(replay: ModuleType) -> None:
    """The same p-values from typed evidence as when the model was scanned, before any bank was asked.

    Not of searches without a target: their usual spacing was derived from the first of them.
    """
    kept = [k for k in replay.everything() if not any(e.detector == "attractor" for e in k.archive.evidence)]
    assert len(kept) >= 7
    for one in kept:
        recorded = one.recorded.get("score")
        if recorded is None:  # of before a score was kept, and before there was a bank
            said = [c.log10_p for c in replay.judged(one).classes]
            assert said == pytest.approx(one.recorded["log10_p"], rel=REORDERED_64, abs=REORDERED_64), one.model["name"]
        else:
            assert replay.judged(one).score == pytest.approx(recorded, rel=REORDERED_64, abs=REORDERED_64), one.model[
                "name"
            ]


def test_kept_evidence_keeps_to_its_schema(replay: ModuleType) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for one in replay.everything():
        validator.validate(one.archive.describe())
        assert one.half in ("tuning", "judging")
        assert {"name", "infected", "targets", "classes"} <= set(one.model)


def test_the_shipped_bank_is_what_the_tuning_half_derives(replay: ModuleType) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        derive = importlib.import_module("derive")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    assert derive.BANK.read_text() == derive.as_text(derive.bank(replay.everything()))
    tuning = [k for k in replay.everything() if k.half == "tuning"]
    assert derive.bank(replay.everything()) == derive.bank(tuning)  # nothing of the judging half is in it


def test_nothing_is_derived_from_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there, or is empty, once emptied the bank that ships."""
    derive = script("derive")
    before = derive.BANK.read_bytes()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SystemExit) as ended:
            derive.main(["--evidence", str(folder)])
        assert ended.value.code == 2
        assert "no kept evidence" in capsys.readouterr().err
    assert derive.BANK.read_bytes() == before


def test_proper_scores(replay: ModuleType) -> None:
    scored = replay.proper_scores(
        [
            {"p_backdoored": 0.9, "infected": True},
            {"p_backdoored": 0.2, "infected": False},
            {"p_backdoored": None, "infected": True},
        ]
    )
    assert scored["models"] == 2
    assert scored["cross_entropy"] == pytest.approx(0.164252, abs=SIX_DIGITS)
    assert scored["brier"] == pytest.approx(0.025)
    # With even odds: 0.9 and 0.2 at a prior of 0.1 are likelihood ratios of 81 and 2.25, so 81/82 and 2.25/3.25.
    assert scored["share_infected"] == 0.5
    assert scored["with_that_prior"]["cross_entropy"] == pytest.approx(-(np.log(81 / 82) + np.log(1 / 3.25)) / 2)
    assert replay.proper_scores([]) is None


def test_areas_by_number_of_classes(replay: ModuleType) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    rows = [
        {"classes": int(k), "infected": bool(i), "log10_p": round(-float(rng.exponential(1 + 2 * i)), 1)}
        for k, i in zip(rng.choice([2, 9, 10, 99, 100, 1000], 200), rng.random(200) < 0.4, strict=True)
    ]
    sizes = replay.by_size(rows)
    assert sum(map(len, sizes.values())) == len(rows)
    for name, (low, high) in replay.SIZES.items():
        assert {r["classes"] for r in sizes[name]} == {k for k in (2, 9, 10, 99, 100, 1000) if low <= k <= high}
        wanted = roc_auc_score([r["infected"] for r in sizes[name]], [-r["log10_p"] for r in sizes[name]])
        assert replay.roc_area(sizes[name]) == pytest.approx(wanted)
    assert replay.roc_area([r for r in rows if r["infected"]]) is None
