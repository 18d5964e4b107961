"""What may help a file that onnxruntime does not load or run, by what it says."""

from __future__ import annotations

import re

_NO_KERNEL = re.compile(r"Could not find an implementation|NOT_IMPLEMENTED")
_TYPE = re.compile(r"Type '?tensor\((bfloat16|double|float8\w*)\)'?.* is invalid|Type Error: Type")
_SIZES = re.compile(
    r"dimensions? must match|imensions? mismatch|mismatched dimensions|invalid dimensions|cannot be reshaped|broadcast|"
    r"incompatible dimensions",
    re.IGNORECASE,
)


def way_out(said: str, opset: int = 0) -> str:
    """The next step.

    Args:
        said: by onnxruntime.
        opset: of the file; 0 where it is not at hand.
    """
    if 0 < opset < 7:
        return "`onnxspect convert` upgrades files of so old an operator set"
    if _NO_KERNEL.search(said) or _TYPE.search(said):
        return "onnxruntime does not compute that operator in this type on a CPU: export the network in float32 (model.float())"
    if _SIZES.search(said):
        return (
            "its graph was written for another size than its input declares, often for one batch: export it with a free batch, or declare the "
            "size that it was made for (python -m onnxruntime.tools.make_dynamic_shape_fixed)"
        )
    if not opset:
        return ""
    if opset <= 17:
        return "it does not run in onnxruntime as it is: export it again, and try the file in onnxruntime itself"
    return "exporting it again at opset 17 may help"
