"""A failing machine is no reason to say less of a model: it stops a job that would go on without a detector or a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from patch_support import case_of, neuron_model, opened

from onnxspect.converters.errors import CLASSES
from onnxspect.engine.errors import Kind, OnnxspectError
from onnxspect.engine.jobs.patch import try_methods
from onnxspect.engine.jobs.scan import _evidence_of
from onnxspect.engine.judge.evidence import Skipped
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.verification import Goals

STOPS = (Kind.MACHINE, Kind.INTERNAL)


@dataclass(frozen=True)
class Failing:
    """A detector and a method that can only fail."""

    kind: Kind
    name: ClassVar[str] = "failing"
    trains: ClassVar[bool] = False
    mends: ClassVar[bool] = True

    def run(self, _: object) -> Skipped:
        raise CLASSES[self.kind]("the fact")

    def edit(self, _: PatchInput) -> Edit:
        raise CLASSES[self.kind]("the fact")


@pytest.mark.parametrize("kind", Kind)
def test_one_detector_of_several(kind: Kind) -> None:
    if kind in STOPS:
        with pytest.raises(OnnxspectError, match="the fact"):
            _evidence_of(Failing(kind), None, alone=False)  # type: ignore[arg-type]
    else:
        assert _evidence_of(Failing(kind), None, alone=False) == Skipped("failing", "the fact")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", Kind)
def test_one_method_of_several(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    case = case_of(opened(neuron_model(), tmp_path_factory.mktemp("m")))
    methods = [Failing(kind), Failing(kind)]
    if kind in STOPS:
        with pytest.raises(OnnxspectError, match="the fact"):
            try_methods(methods, case, "e", Goals())
    else:
        best, attempts = try_methods(methods, case, "e", Goals())
        assert best is None
        assert len(attempts) == 2
