"""The page docs/zoo.md and the contact sheets: every trigger has one, and the table is the script's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxspect import models
from onnxspect.models.recipes import read_recipes, recipe_from_dict
from onnxspect.models.triggers import kinds
from onnxspect.models.zoo_build import attack_of, missed_floors

ROOT = Path(models.__file__).resolve().parent.parent
SHEETS = ROOT / "docs" / "triggers"
PAGE = ROOT / "docs" / "zoo.md"
BUILT = ROOT / "benchmarks" / "results" / "zoo_small.json"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is not beside this installation")


def built() -> dict[str, object]:
    return json.loads(BUILT.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_every_kind_of_trigger_is_on_the_page_with_its_sheets() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind in kinds():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{kind}` |"))
        sheets = [part.split(")")[0] for part in line.split("](triggers/")[1:]]
        assert sheets, kind
        for name in sheets:
            with Image.open(SHEETS / name) as sheet:
                assert sheet.size[1] > 200
            assert (SHEETS / name).stat().st_size < 60_000


def test_sheets_are_what_the_script_draws(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "trigger_sheets.py"
    command = [sys.executable, str(script), "--out", str(tmp_path), "--manifest", str(BUILT)]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in SHEETS.iterdir()}
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(SHEETS / path.name) as kept:
            # The column of row names is left out: fonts differ between versions of Pillow. And a warp is interpolated
            # in float32, so another CPU may round a pixel the other way.
            differs = (np.asarray(drawn) != np.asarray(kept))[:, 76:].any(axis=2)
            assert differs.mean() < 1e-3, path.name


def test_zoo_small_was_built_from_its_list_and_reaches_its_floors() -> None:
    document = built()
    rows = document["models"]
    assert isinstance(rows, list)
    assert missed_floors(document) == []
    listed = read_recipes(Path(models.__file__).parent / "recipes_small.toml")
    assert tuple(recipe_from_dict(row["recipe"]) for row in rows) == listed
    for row in rows:
        attack = attack_of(row)
        if attack is not None:
            assert not attack.needs_surrogate or row["recipe"]["surrogate"]
            assert row["asr"] >= 0.9 or row["recipe"]["floors"]["asr"] < 0.9


def test_page_shows_the_built_numbers() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = built()["models"]
    assert isinstance(rows, list)
    for row in rows:
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['name']} |"))
        assert f"| {100 * row['clean_accuracy']:.2f} |" in line
        if row["asr"] is not None:
            assert f"| {100 * row['asr']:.2f} |" in line
