"""The verdict's limits: the rate of false alarms that it allows, and how much must have been seen before anything is said.

They stand apart from the statistics, whose libraries take seconds to load, for reports that are only shown again.
"""

from __future__ import annotations

import math

#: Chance of an alarm on a clean model that the verdict allows, over all classes together. History: docs/decisions.md.
ALPHA = 0.01
#: Where the bank finds a class suspicious and no detector does by itself, those have found it whose own p-value is below this. History:
#: docs/decisions.md.
TOGETHER = 0.5
#: Held-out validation: a trigger that works on a smaller share of the clean samples that its search never saw is
#: overfitted and proves nothing. History: docs/decisions.md.
HELD_OUT_SUCCESS = 0.5
#: Share of searches that must have converged before "clean" may be said.
CONVERGED_ENOUGH = 0.7


def fewest_trials(share: float, level: float) -> int:
    """The least number of trials that can show a chance of success above `share` at `level`: the exact binomial bound.

    n successes in n trials have the probability share^n where the chance is `share` (Clopper and Pearson, 1934), and nothing
    that n trials can show is stronger. By symmetry n failures are needed to show a chance below 1 - share.
    """
    if not 0 < share < 1 or not 0 < level < 1:
        raise ValueError(f"share {share} and level {level} lie between 0 and 1")
    return max(1, math.ceil(math.log(level) / math.log(share)))


#: Fewer clean samples that the search never saw can neither validate a trigger nor refute it.
FEWEST_HELD_OUT = fewest_trials(HELD_OUT_SUCCESS, ALPHA)
