"""A model and its data, opened together: how every job begins.

The model is opened and checked first, because it says which images it takes; then the data are read in that size; then the
Subject is made, with the size of the images where the model leaves it open. Nobody outside sees a Subject that is half made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from onnxspect.converters.stages import stage
from onnxspect.engine.jobs.fitting import chosen_way
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.activations import TrainingSet, open_training_set
from onnxspect.engine.subject.datasets import Data, Source, samples_from
from onnxspect.engine.subject.opening import Model, open_model
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

Set = TypeVar("Set", Samples, TrainingSet)


@dataclass(frozen=True)
class Reading:
    """How samples were read for a model; without the model they are read so again.

    Attributes:
        size: (channels, height, width) that the model takes; None where it takes any.
        way: how images of another size were brought to it.
        classes: the model's classes in order, where its file names them.
    """

    size: tuple[int, int, int] | None = None
    way: Resizing = False
    classes: ClassList | None = None


@dataclass(frozen=True)
class Case(Generic[Set]):
    """What a job works on.

    Attributes:
        subject: the model.
        samples: labelled images in its size: clean samples in memory, or a training set on disk.
        spec: the model's preprocessing where the caller knows it; None where it is to be found out.
        training: the training set beside clean samples, perhaps poisoned; None where there is none.
        reading: how the samples were read.
        notes: what was changed, guessed or left out in opening the model and reading the samples, in sentences.
    """

    subject: Subject
    samples: Set
    spec: InputSpec | None
    training: Samples | None = None
    reading: Reading = Reading()
    notes: tuple[str, ...] = ()


def open_case(
    model: Model,
    data: Data,
    spec: InputSpec | None = None,
    run: RunContext | None = None,
    resize: Resizing = False,
    train: Data | None = None,
) -> Case[Samples]:
    """Open a model with clean samples.

    Args:
        model: see `opening.ACCEPTED`.
        data: see `datasets.ACCEPTED`.
        spec: the model's preprocessing, where the caller knows it.
        run: whose device is used.
        resize: bring images of another size to the model's, or the way to do it.
        train: the training set, in the same forms as `data`.

    Raises:
        OnnxspectError: no usable image classifier, or samples that do not fit it; says why.
    """
    run = run or RunContext()
    opened = open_model(model, spec, run.device)
    stage("reading the samples")
    way, said = chosen_way(opened, data, resize)
    samples = samples_from(data, opened.size, way, opened.class_names)
    samples = replace(samples, notes=(*samples.notes, *said))
    reading = Reading(opened.size, way, opened.class_names)
    opened = opened.fitting(samples)
    training = samples_from(train, opened.size, way, opened.class_names, training=True) if train is not None else None
    of_training = () if training is None else tuple(f"training set: {note}" for note in training.notes)
    notes = (*opened.notes, *samples.notes, *of_training)
    return Case(opened.subject(samples.shape), samples, opened.known_spec, training, reading, notes)


def open_training_case(
    model: Model, train: str | Path | Source, spec: InputSpec | None = None, run: RunContext | None = None
) -> Case[TrainingSet]:
    """Open a model with the training set that it was trained on, whose images stay on disk.

    Args:
        model: see `opening.ACCEPTED`.
        train: a path of any form that is read.
        spec: the model's preprocessing, where the caller knows it.
        run: whose device is used.

    Raises:
        OnnxspectError: no usable image classifier, or a training set that does not fit it; says why.
    """
    opened = open_model(model, spec, (run or RunContext()).device)
    stage("reading the training set")
    source = train if isinstance(train, Source) else Source(Path(train))
    training = open_training_set(source.path, opened.size, source.classes or opened.class_names)
    return Case(opened.subject(training.shape), training, opened.known_spec, notes=opened.notes)
