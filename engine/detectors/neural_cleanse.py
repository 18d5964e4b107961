"""Neural Cleanse (002, Wang et al. 2019): the smallest mask and pattern that sends every image to a class.

Eq. 2: A(x, m, D) = (1 - m) * x + m * D. Eq. 3: min over m, D of loss(y_t, f(A(x, m, D))) + lambda * |m|_1, for each
class t, with lambda moved so that at least 99 % of the images reach t. The statistic is the mask's L1 norm; the
backdoored class needs a far smaller one (sec. III).

Departures, and why:

* The loss and the success rate are taken over images that are *not* of class t. The published code uses all images;
  those of class t are there already, cost a tenth of the time and blur the success rate.
* A fixed set of images and full-batch steps instead of epochs of mini-batches: success is exact at every step and
  lambda follows at once, so that hundreds of steps do what tens of epochs did.
* The search stops when it has converged, and says whether it did: the outlier test is only as good as its norms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from onnxspect.engine.detectors.base import (
    AtHand,
    Detector,
    logs_of_references,
    present_classes,
    relative_to,
    search_units,
)
from onnxspect.engine.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.perturbation import MaskPattern
from onnxspect.engine.search import SearchConfig

NAME = "neural-cleanse"


@dataclass(frozen=True)
class NeuralCleanse(Detector):
    """The detector's settings.

    Attributes:
        search: how hard each class is searched.
        perturbation: the trigger family, Eq. 2.
        held_out: at most so many unseen clean samples measure whether a trigger carries over.
    """

    name: ClassVar[str] = NAME
    search: SearchConfig = field(default_factory=SearchConfig)
    perturbation: MaskPattern = field(default_factory=MaskPattern)
    held_out: int = 500

    def run(self, at_hand: AtHand) -> Evidence:
        """Search all classes and measure each trigger on samples that the search never saw."""
        present = present_classes(at_hand.found_on)
        units = [Unit(target=t) for t in range(at_hand.subject.classes) if present - {t}]
        # A baseline is a mean over networks and needs no fine convergence; its own scale cancels in the comparison.
        lighter = replace(self.search, samples=max(1, self.search.samples // 2))

        def searched(name: str, *, reference: int | None = None) -> tuple[UnitEvidence, ...]:
            subject = at_hand.subject if reference is None else at_hand.references[reference]
            ledger = at_hand.ledger if reference is None else at_hand.reference_ledger
            config = self.search if reference is None else lighter
            return search_units(
                name, subject, at_hand, ledger, units, self.perturbation, config, "l1", self.held_out, drawn_as=NAME
            )

        baselines = [searched(f"{NAME} on reference {i}", reference=i) for i in range(len(at_hand.references))]
        found = searched(NAME)
        if not baselines:
            return Evidence(NAME, self.settings(), "l1", "l1", "low", found)
        settings = self.settings() | {"references": len(baselines)}
        logs = logs_of_references(baselines, "l1")
        told = tuple(relative_to(u, log, "l1") for u, log in zip(found, logs, strict=True))
        return Evidence(NAME, settings, "relative_l1", "l1", "low", told)
