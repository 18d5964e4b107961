"""What kind of backdoor the recovered triggers suggest: on triggers whose kind is known."""

from __future__ import annotations

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.judge.kind import suggest_kind
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.traits import Family, Traits

NC, RE, CEPA = "neural-cleanse", "reverse-engineering", "cepa"
FAMILIES = {NC: Family.REPLACED, RE: Family.ADDED, CEPA: Family.SAMPLE_WISE}
SIDE = 28


def evidence(name: str, trigger: dict[str, np.ndarray], source: int | None = None) -> Evidence:
    def unit(target: int, value: float, of: int | None, arrays: dict[str, np.ndarray]) -> UnitEvidence:
        return UnitEvidence(Unit(target, of), measured(size=value), True, True, 1, 1.0, 0.9, 10, arrays)

    other = {"delta": np.ones((1, SIDE, SIDE), np.float32)}
    units = (unit(0, 9.0, None, other), unit(3, 1.0, source, trigger), unit(3, 5.0, None, other))
    return Evidence(name, {}, "size", "size", "low", units, traits=Traits(FAMILIES.get(name, Family.OTHER)))


def patch_mask() -> dict[str, np.ndarray]:
    mask = np.random.default_rng(0).uniform(0, 0.02, (1, SIDE, SIDE))
    mask[0, 24:27, 24:27] = 0.9
    return {"mask": mask, "pattern": np.ones((1, SIDE, SIDE))}


def checkerboard(level: float) -> dict[str, np.ndarray]:
    rows, columns = np.indices((SIDE, SIDE))
    return {"delta": np.where((rows + columns) % 2 == 0, level, -level)[None].astype(np.float32)}


def test_a_patch_is_local_wherever_it_is() -> None:
    assert suggest_kind(3, [evidence(NC, patch_mask())], [NC]) == "a local patch"
    rolled = {k: np.roll(v, (9, 5), (1, 2)) for k, v in patch_mask().items()}
    assert suggest_kind(3, [evidence(NC, rolled)], [NC]) == "a local patch"


def test_faint_and_strong_patterns_over_the_image() -> None:
    assert "faint pattern" in suggest_kind(3, [evidence(RE, checkerboard(3 / 255))], [RE])
    assert "spread over the image" in suggest_kind(3, [evidence(RE, checkerboard(0.2))], [RE])
    corners = np.zeros((1, SIDE, SIDE))
    corners[0, :3, :3] = corners[0, -3:, -3:] = 1.0
    several = {"mask": corners, "pattern": np.ones((1, SIDE, SIDE))}
    assert "spread over the image" in suggest_kind(3, [evidence(NC, several)], [NC])


def test_the_source_is_named_where_the_most_suspicious_unit_has_one() -> None:
    assert suggest_kind(3, [evidence(RE, checkerboard(3 / 255), source=7)], [RE]).endswith("from class 7")


def test_only_sample_wise_changes_found_it() -> None:
    delta = {"delta": np.full((1, SIDE, SIDE), 0.01, np.float32)}
    both = [evidence(NC, patch_mask()), evidence(CEPA, delta)]
    assert "differs from image to image" in suggest_kind(3, both, [CEPA])
    assert suggest_kind(3, both, [NC, CEPA]) == "a local patch"


def test_nothing_is_said_without_a_change_of_pixels() -> None:
    inner = evidence("other", {"mu": np.ones(16)})
    assert suggest_kind(3, [inner], ["other"]) == ""
    assert suggest_kind(5, [evidence(NC, patch_mask())], [NC]) == ""
    assert suggest_kind(3, [], [NC]) == ""
