"""How small is small: room is measured on the classes that are not suspected, and new finds are compared with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import quadrant_images
from patch_support import TARGET, planted_trigger
from tolerances import SUM_32

from onnxspect.engine.mitigation.remainder import SMALL, Searches, search_again, with_size_limits
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import LARGEST_SIZE_LIMIT, Trigger

FIT = quadrant_images(12, 0)
HOW = Searches(
    SearchConfig(steps=80, settle=20), SearchConfig(steps=80, settle=20, learning_rate=0.01, multiplier=0.01)
)


def test_the_classes_without_an_attack_say_how_much_room_there_is(planted: Subject) -> None:
    """The planted trigger is far smaller than what the other classes need; one as large as theirs has no room."""
    others = [
        f.trigger.size
        for f in search_again(
            planted, FIT, [replace(planted_trigger(), target=c) for c in (0, 1, 3)], RunContext(), "room", HOW
        )
    ]
    assert len(others) == 3
    typical = float(np.median(others))
    (planted_one,) = with_size_limits(planted, FIT, [planted_trigger()], RunContext(), HOW)
    assert planted_one.size_limit == pytest.approx(min(LARGEST_SIZE_LIMIT, SMALL * typical / planted_trigger().size))
    assert planted_one.size_limit > 1.5
    large = {"mask": np.full((1, 8, 8), 0.4 * typical / 64, np.float32), "pattern": np.zeros((1, 8, 8), np.float32)}
    (middling,) = with_size_limits(planted, FIT, [Trigger(TARGET, large)], RunContext(), HOW)
    assert middling.size_limit == pytest.approx(SMALL / 0.4, rel=SUM_32)
    large["mask"] = large["mask"] * 3
    (none,) = with_size_limits(planted, FIT, [Trigger(TARGET, large)], RunContext(), HOW)
    assert none.size_limit == 1.0


def test_where_every_class_is_suspected_the_room_stays(planted: Subject) -> None:
    every = [replace(planted_trigger(), target=c, size_limit=1.5) for c in range(4)]
    assert [t.size_limit for t in with_size_limits(planted, FIT, every, RunContext(), HOW)] == [1.5] * 4


def test_a_new_search_tells_a_remainder_from_what_any_model_has(planted: Subject) -> None:
    (find,) = search_again(planted, FIT, [planted_trigger()], RunContext(), "again", HOW)
    assert find.remains
    assert find.trigger.target == TARGET
    assert find.relative == pytest.approx(find.trigger.size / planted_trigger().size)
    # The bound is one for all triggers of a backdoor: the smaller find has the more room.
    assert find.trigger.size_limit * find.trigger.size == pytest.approx(
        LARGEST_SIZE_LIMIT * planted_trigger().size, rel=SUM_32
    )
    (strict,) = search_again(
        planted, FIT, [replace(planted_trigger(), size_limit=find.relative / 2)], RunContext(), "again", HOW
    )
    assert strict.relative == find.relative
    assert not strict.remains


def test_additive_triggers_are_searched_for_additive_ones(planted: Subject) -> None:
    delta = np.zeros((1, 8, 8), np.float32)
    delta[0, 3, 3] = 1.0
    pair = Trigger(TARGET, {"delta": delta}, source=1)
    found = search_again(planted, FIT, [planted_trigger(), pair], RunContext(), "again", HOW)
    assert [(sorted(f.trigger.arrays), f.trigger.source) for f in found] == [
        (["mask", "pattern"], None),
        (["delta"], 1),
    ]
    assert search_again(planted, FIT, [], RunContext(), "again", HOW) == []
