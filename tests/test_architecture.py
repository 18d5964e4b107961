"""docs/architecture.md and its picture are what docs/make_architecture.py makes of the code; the rooms import one way."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs/make_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_what_the_code_says(maker: ModuleType) -> None:
    made = maker.picture(maker.Rooms.read())
    assert (ROOT / "docs/architecture.svg").read_text(encoding="utf-8") == made, "run: python docs/make_architecture.py"


def test_the_page_is_what_the_code_says(maker: ModuleType) -> None:
    assert maker.page(PAGE, maker.Rooms.read()) == PAGE, "run: python docs/make_architecture.py"


def test_every_file_is_in_a_room_and_every_room_has_files(maker: ModuleType) -> None:
    assert {maker.room_of(p) for p in maker.sources()} == {r.name for r in maker.ROOMS}
    assert [p for r in maker.ROOMS for p in r.paths if not (ROOT / p).exists()] == []


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"\]\((?:\.\./)?([^)#]+)\)", PAGE)
    assert len(named) > 40
    missing = [n for n in named if not (ROOT / n).exists() and not (ROOT / "docs" / n).exists()]
    assert missing == []


def test_no_arrow_runs_backwards(maker: ModuleType) -> None:
    rooms = maker.Rooms.read()
    rows = rooms.rows()
    assert [(a, b) for a, b in rooms.arrows if rows[a] >= rows[b]] == []
    assert ("engine/subject", "converters/sources") in rooms.arrows
    assert ("cli", "engine/jobs") in rooms.arrows


def test_a_circle_is_refused(maker: ModuleType) -> None:
    rooms = maker.Rooms.read()
    back = maker.Rooms(rooms.arrows | {("engine/judge", "engine/search"): [("engine/judge/verdict.py", "x")]})
    with pytest.raises(ValueError, match=r"circle, among .*engine/judge -> engine/search \(engine/judge/verdict\.py\)"):
        back.rows()


def test_arrows_left_out_are_said_by_longer_ways(maker: ModuleType) -> None:
    """What is drawn has the same rooms in reach as what is imported."""

    def reach(arrows: list[tuple[str, str]], start: str) -> set[str]:
        found: set[str] = set()
        new = {start}
        while new:
            new = {b for a, b in arrows if a in new} - found
            found |= new
        return found

    rooms = maker.Rooms.read()
    assert set(rooms.drawn()) < set(rooms.arrows)
    for room in maker.ROOMS:
        assert reach(rooms.drawn(), room.name) == reach(list(rooms.arrows), room.name)


def test_imports_in_functions_count(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "ROOT", tmp_path)
    (tmp_path / "here.py").write_text(
        "import onnxspect.engine.store\n"
        "def f():\n    from onnxspect.engine.judge import verdict\n    from onnxspect.engine.store import Ledger\n"
    )
    modules = {"onnxspect.engine.store": "engine/store.py", "onnxspect.engine.judge.verdict": "engine/judge/verdict.py"}
    assert set(maker.imported("here.py", modules)) == {"engine/store.py", "engine/judge/verdict.py"}


@pytest.mark.parametrize(
    "wrong", [{"name": "NeuralClean"}, {"path": "engine/nowhere.py"}, {"used_in": "engine/store.py"}]
)
def test_a_place_that_the_code_does_not_have_is_refused(maker: ModuleType, wrong: dict[str, str]) -> None:
    place = next(p for p in maker.WHERE if p.name == "NeuralCleanse")
    assert maker.checked(place) == place
    with pytest.raises(ValueError, match="does not"):
        maker.checked(replace(place, **wrong))


def test_walks_are_ten_steps(maker: ModuleType) -> None:
    assert {job: len(steps) for job, steps in maker.WALKS.items()} == {"scan": 10, "patch": 10}


def test_the_picture_is_plain_svg_with_text_inside_its_boxes(maker: ModuleType) -> None:
    root = ElementTree.fromstring((ROOT / "docs/architecture.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    card = root.find(f"{space}rect")
    assert card is not None
    assert card.get("fill") == "#ffffff"  # readable on a dark page too
    boxes = [r for r in root.iter(f"{space}rect") if r is not card]
    corners = {(int(b.get("x", 0)), int(b.get("y", 0))) for b in boxes}
    assert len(corners) == len(maker.ROOMS)
    for x, y in corners:
        overlapping = [
            c for c in corners if c != (x, y) and abs(c[0] - x) < maker.WIDTH and abs(c[1] - y) < maker.HEIGHT
        ]
        assert overlapping == []
    assert all(len(w) <= 36 for r in maker.ROOMS for w in r.words)
