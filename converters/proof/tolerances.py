"""How far two runtimes may differ on the same graph: one table, by precision, used wherever outputs are compared.

It is free of torch, because the guarded children compare outputs too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

#: Precision of the file -> largest difference allowed, as a fraction of the reference's largest magnitude.
#: float64: the working type of torch is then float64 too.
#: float32: sums of 10^4 terms in either order agree to a few 1e-6, a hundred layers deep to 1e-5.
#: float16, bfloat16: half a unit in the last place is 2^-11 or 2^-8, and runtimes round at different places.
#: quantized: a value that falls between two steps may be rounded either way; one step of 255, a few times over.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "quantized": 4e-2,
}
#: Precision -> differences up to this are none, whatever the magnitude: outputs that are all but 0 (a saturated softmax).
ABSOLUTE: Mapping[str, float] = {**dict.fromkeys(TOLERANCES, 1e-7), "float64": 1e-15}


def allowed_difference(reference: np.ndarray, precision: str = "float32") -> float:
    """The largest absolute difference from `reference` (any shape) that is still equality up to rounding."""
    magnitude = float(np.abs(reference).max(initial=0.0)) if reference.size else 0.0
    return max(ABSOLUTE[precision], TOLERANCES[precision] * magnitude)
