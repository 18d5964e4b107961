"""The papers' triggers, one family a file, found by kind through one registry."""

from onnxspect.models.triggers.additive import AdditiveShape, Chessboard, FourPixels, Sinusoid, Static
from onnxspect.models.triggers.base import GroundTruth, ImageShape, Trigger, kinds, to_pixels, trigger_from_dict
from onnxspect.models.triggers.blend import Blend
from onnxspect.models.triggers.frequency import Frequency
from onnxspect.models.triggers.learned import LearnedTrigger, SurrogatePattern, TrojanPatch
from onnxspect.models.triggers.patch import Patch
from onnxspect.models.triggers.reflection import Reflection
from onnxspect.models.triggers.warp import Warp

__all__ = [
    "AdditiveShape",
    "Blend",
    "Chessboard",
    "FourPixels",
    "Frequency",
    "GroundTruth",
    "ImageShape",
    "LearnedTrigger",
    "Patch",
    "Reflection",
    "Sinusoid",
    "Static",
    "SurrogatePattern",
    "Trigger",
    "TrojanPatch",
    "Warp",
    "kinds",
    "to_pixels",
    "trigger_from_dict",
]
