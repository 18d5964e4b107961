"""What a detector is, stated once by itself and kept with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Family(StrEnum):
    """What kind of change a detector looks for."""

    #: Pixels that are replaced: a mask and a pattern.
    REPLACED = "replaced"
    #: One pattern that is added to every image.
    ADDED = "added"
    #: Pixels that are moved: a warp.
    MOVED = "moved"
    #: A change that differs from image to image and has one effect inside the network.
    SAMPLE_WISE = "sample-wise"
    #: None: training samples are compared, with each other or with clean ones.
    SAMPLES = "samples"
    #: Pixels that wake a part of the graph.
    GRAPH = "graph"
    #: A mask and a pattern, or an added pattern, that leads images to one class, whichever.
    OPEN = "open"
    #: Whatever input the model answers with a class.
    ANY_INPUT = "any input"
    #: Another one: of a detector that a user brings in.
    OTHER = "other"


@dataclass(frozen=True)
class Traits:
    """What a detector is.

    Attributes:
        family: the kind of change it looks for.
        references: it compares the subject with clean reference networks, which then have to be trained.
        training_set: it can do nothing without one.
        convicts: False for a screening detector, which raises suspicion but names no class on its own.
        leads_to_target: what the triggers do; False where they take images *out of* the unit's class.
        validated: whether a trigger must work on held-out samples before it names a class; False where what was found is
            no trigger that leads there.
        smallest: its triggers were searched to be as small as possible; False where they were read off samples, which gives
            one for every class, also where it leads nowhere.
        tested: its units bring the p-value of a test of their own (`log10_p` among their statistics), corrected for all that it
            tried, and are not compared with each other. It may have none, and such silence acquits of nothing.
    """

    family: Family = Family.OTHER
    references: bool = True
    training_set: bool = False
    convicts: bool = True
    leads_to_target: bool = True
    validated: bool = True
    smallest: bool = True
    tested: bool = False

    @property
    def sample_wise(self) -> bool:
        """Whether its perturbations differ from image to image."""
        return self.family is Family.SAMPLE_WISE

    @property
    def of_samples(self) -> bool:
        """Whether it convicts by what training samples show."""
        return self.family is Family.SAMPLES

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {k: str(v) if isinstance(v, Family) else v for k, v in asdict(self).items()}

    @classmethod
    def described(cls, row: Mapping[str, Any]) -> Traits:
        """What `describe` wrote.

        Raises:
            KeyError, ValueError: the row is not one.
        """
        stated = {f.name: bool(row[f.name]) for f in fields(cls)[1:] if f.name in row or f.name != "tested"}
        return cls(Family(row["family"]), **stated)
