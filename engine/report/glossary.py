"""The terms of the page, each in a sentence or two: shown on hover and focus, and as a list at the end, which prints."""

from __future__ import annotations

from onnxspect.engine.judge.thresholds import ALPHA

#: Key -> (term, what it means).
GLOSSARY: dict[str, tuple[str, str]] = {
    "backdoor": (
        "backdoor",
        "A hidden behaviour that somebody trained or built into a model: inputs that carry a certain trigger get the answer "
        "that the attacker chose. Without the trigger the model behaves like any other.",
    ),
    "trigger": (
        "trigger",
        "The change of an image that makes the model answer the attacker's class: a sticker, some pixels, a faint pattern, a "
        "warp. What is shown here was found by a search; it works, and need not look like the attacker's own.",
    ),
    "target": ("target class", "The class that images with the trigger are taken for."),
    "p": (
        "p-value",
        "How often a clean model would look at least this suspicious by chance alone, corrected for the number of classes and of "
        f"searches. An alarm is raised below {ALPHA:g}.",
    ),
    "reference": (
        "reference",
        "Small networks that were trained on your clean samples alone, which no attacker has touched. The same searches ran on "
        "them, so that each class is compared with what is normal for that class.",
    ),
    "anomaly": (
        "anomaly",
        "How far a class lies from what its references and the other classes lead to expect, in deviations. Large positive "
        "values are suspicious.",
    ),
    "unseen": (
        "on unseen",
        "The share of clean images, which the search never saw, that the trigger leads to the class. A trigger that works on "
        "less than half of them is overfitted and raises no alarm.",
    ),
    "mad": (
        "MAD index",
        "The rule of the Neural Cleanse paper, shown beside the calibrated one: distance to the median in units of the median "
        "absolute deviation. Above 2 the paper calls a class infected; on few classes that is common on clean models.",
    ),
    "max-margin": (
        "max-margin",
        "The search for the images, in the whole range of pixels, on which a class wins by the widest margin. A backdoored "
        "class can win by more than any other. Its number is that margin, in units of the model's scores.",
    ),
    "neural-cleanse": (
        "neural-cleanse",
        "The search for the smallest patch (mask and pattern) that sends every image to a class (Wang et al., 2019). Its number "
        "(l1) is the size of the mask in pixels.",
    ),
    "reverse-engineering": (
        "reverse-engineering",
        "The search for the weakest pattern that, added to the whole image, sends it to a class. Its number (l2) is the "
        "pattern's length.",
    ),
    "cepa": (
        "cepa",
        "The search for changes that differ from image to image but agree inside the network.",
    ),
    "window": (
        "window",
        "The search for a small opaque patch: every place of the picture is tried with a window of a tenth of its side. Its number (left) says "
        "how far from the class the images still are, in nats: at 0.1 nearly all are there.",
    ),
    "warp": (
        "warp",
        "The search for the slightest way to move the pixels of all images that sends them to a class. Its number (displacement) is "
        "how far pixels are moved, in hundredths of the picture's side.",
    ),
    "attractor": (
        "attractor",
        "A search without a target: the smallest change that leads images anywhere. In a backdoored model it leads them to the "
        "attacker's class, at a far smaller price than to the next one.",
    ),
    "dtinspector": (
        "dtinspector",
        "A test of the training set: a patch that changes the answers of poisoned samples only betrays them.",
    ),
    "training-difference": (
        "training-difference",
        "A test of the training set: what its samples of a class have and your clean ones have not is tried as a trigger.",
    ),
    "limit": (
        "not checked",
        'What this scan cannot rule out. No scan can rule out everything: "clean" means that nothing of the kinds searched '
        "for was found.",
    ),
    "converged": ("converged", "The search met its own stopping rule before its budget of steps was spent."),
    "digest": (
        "report digest",
        "SHA-256 of the report without its times. The same file, data, settings, seed and device give the same digest.",
    ),
    "accuracy": ("clean accuracy", "The share of clean images that the model classifies correctly."),
    "interval": (
        "95 % interval",
        "Where the true share lies, as far as so few images can tell (Wilson's interval).",
    ),
    "initializer": ("initializer", "A named array of weights in an ONNX file."),
    "strip": (
        "STRIP",
        "A filter that blends an input with others: an input whose answer stays the same is suspected to carry a trigger.",
    ),
}
