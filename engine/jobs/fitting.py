"""Which way of resizing a model was trained with: the conventions of resizing.py are tried on some of the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used

from onnxspect.engine.subject.datasets import Data, Source
from onnxspect.engine.subject.input_range import TIE_LEVEL
from onnxspect.engine.subject.opening import Opened
from onnxspect.engine.subject.preprocessing import answered
from onnxspect.engine.subject.resizing import Resizing, way_of
from onnxspect.engine.subject.samples import Samples

#: Images that the ways are compared on.
TRIAL = 128


def chosen_way(opened: Opened, data: Data, resize: Resizing) -> tuple[Resizing, tuple[str, ...]]:
    """The way to resize the images of a path to what a model takes, and what is to be said of the choice.

    The plainest is taken unless another classifies more of the same images correctly than chance would have it.

    Args:
        opened: the model.
        data: samples.
        resize: what the caller wants; anything but "try" stands, and so does a model that takes images of any size.
    """
    way = way_of(resize)
    if way is None or way.how != "try" or opened.size is None or not isinstance(data, str | Path | Source):
        return resize, ()
    source = data if isinstance(data, Source) else Source(Path(data))
    choices = [replace(choice, crop=way.crop) for choice in way.choices(*opened.size[1:])]
    subject, right = None, []
    for choice in choices:
        trial = Samples.load(source.path, opened.size, choice, source.classes or opened.class_names, trial=TRIAL)
        if not any("brought to another size" in note for note in trial.notes):
            return choices[0], ()
        subject = subject or opened.subject(trial.shape)
        if int(trial.labels.max()) >= subject.classes:
            return choices[0], ()  # preflight says what is wrong with the labels
        right.append(answered(subject, trial, opened.known_spec))
    chosen = 0
    for j in range(1, len(choices)):
        won, lost = int((right[j] & ~right[chosen]).sum()), int((right[chosen] & ~right[j]).sum())
        if won > lost and float(scipy.stats.binom.sf(won - 1, won + lost, 0.5)) <= TIE_LEVEL:
            chosen = j
    size = opened.size[1:]
    tried = "; ".join(f"{c.text(*size)}: {float(np.mean(r)):.1%}" for c, r in zip(choices, right, strict=True))
    note = f"ways to resize were tried on {len(right[0])} images ({tried}): {choices[chosen].text(*size)} was taken"
    return choices[chosen], (note,)
