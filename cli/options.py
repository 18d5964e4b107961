"""Options that several commands share, as decorators, and what is made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from onnxspect.cli.console import Progressing
from onnxspect.cli.former_spellings import WAYS
from onnxspect.cli.json_lines import JsonLines
from onnxspect.cli.path_option import path_option
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.run import RunContext, choose_device
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resize
from onnxspect.engine.subject.subject import InputSpec

Command = TypeVar("Command", bound=Callable[..., Any])


def _share(name: str, default: float, help_text: str) -> Any:
    return click.option(name, type=click.FloatRange(0, 1), default=default, show_default=True, help=help_text)


def page(of: str) -> Any:
    """--report FILE: the page of what a command did."""
    return path_option("--report", metavar="FILE", help=f"Write the page of the {of} there, as .html or .json.")


MODEL = click.argument("model", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")

MAX_SUCCESS = _share("--max-success", 0.02, "Most that a trigger may still succeed.")
MAX_ACCURACY_LOST = _share("--max-accuracy-lost", 0.01, "Most clean accuracy that may be lost.")
MAX_REJECTED = _share("--max-rejected", 0.05, "Most clean images that a guarded file may reject.")


def view(command: Command | None = None, *, of: str = "model", name: str = "--output") -> Any:
    """--output and --bind: what of the model is looked at. The command's argument `of` becomes a ModelView where one is given.

    Args:
        command: what is decorated, where no argument is given.
        of: name of the argument that the options are about.
        name: of the first option, where --output is another thing.
    """

    def decorate(function: Command) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, score_output: str, bound_inputs: tuple[str, ...], **kwargs: Any) -> Any:
            if kwargs[of] is not None and (score_output or bound_inputs):
                kwargs[of] = ModelView(kwargs[of], score_output, _bindings(bound_inputs))
            return function(*args, **kwargs)

        wrapped = click.option(
            "--bind",
            "bound_inputs",
            multiple=True,
            metavar="NAME=VALUE",
            help="Fill an input that is no image (keep_prob=1). May be given again.",
        )(inner)
        return click.option(
            name,
            "score_output",
            default="",
            metavar="NAME",
            help="The output that holds the class scores, where there are several.",
        )(wrapped)

    return decorate if command is None else decorate(command)


def _bindings(given: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    found = []
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            number = {"true": 1.0, "false": 0.0}.get(value.lower())
            found.append((name, float(value) if number is None else number))
        except ValueError:
            equals = ""
        if not equals or not name:
            raise OnnxspectError(f"--bind {text!r:.80}: not a name and a number", "such as --bind keep_prob=1")
    return tuple(sorted(found))


PROGRESS = click.option(
    "--progress",
    type=click.Choice(["auto", "json"]),
    default="auto",
    show_default=True,
    help="Bars or lines for people, or one JSON object a line for programs; on stderr.",
)


def data(help_text: str = "Clean samples: a folder of images by class, an npz, or another form (docs/data.md).") -> Any:
    """--data PATH, required."""
    return path_option("--data", metavar="PATH", required=True, help=help_text)


def run_options(command: Command) -> Command:
    """--device and --seed."""
    command = click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The one source of all randomness."
    )(command)
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:N]",
        help="Where to compute: cuda searches on every GPU that torch sees, cuda:0 on that one.",
    )(command)


class _Way(click.ParamType):
    """What --resize takes: nothing, a number of pixels, "crop" or "stretch"."""

    name = "way"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Resize):
            return value
        if value in WAYS:
            return Resize(value)
        if str(value).isdecimal() and int(value) > 0:
            return Resize("crop", int(value))
        return self.fail(f"{value!r} is no number of pixels, crop or stretch", param, ctx)


_CLASSES = click.option(
    "--classes",
    metavar="FILE",
    help="The model's class names in its order: a file with one a line (or JSON), or names with commas. Labels and folders are read by it.",
)


def reading_options(command: Command) -> Command:
    """How samples are read. The command gets its `data` and `train` as a Source, and as `resize` a way or False."""

    @functools.wraps(command)
    def reading(*args: Any, resize: Resize | None, crop: int | None, **others: Any) -> Any:
        if crop is not None and resize is None:
            raise OnnxspectError("--crop says what is cut from resized images", f"--resize N --crop {crop}")
        return command(*args, resize=False if resize is None else replace(resize, crop=crop), **others)

    wrapped = classes_option(cast(Command, reading))
    wrapped = click.option(
        "--crop", type=click.IntRange(min=1), metavar="N", help="With --resize: the size that is cut from the centre."
    )(wrapped)
    return click.option(
        "--resize",
        type=_Way(),
        is_flag=False,
        flag_value="try",
        metavar="[N|crop|stretch]",
        help="Bring images of another size to the model's: the shorter side to N pixels, then the centre; or stretch both sides. Alone "
        "it tries the usual ways.",
    )(wrapped)


def classes_option(command: Command) -> Command:
    """--classes. The command gets its `data` and `train` as a Source."""

    @functools.wraps(command)
    def ordered(*args: Any, classes: str | None, **others: Any) -> Any:
        known = ClassList.of(classes) if classes is not None else None
        for name in ("data", "train"):
            if others.get(name) is not None:
                others[name] = Source(others[name], known)
        return command(*args, **others)

    return cast(Command, _CLASSES(ordered))


def preprocessing_options(command: Command) -> Command:
    """How pixels are fed to the model, for users who know; without them it is found out.

    The command gets as `spec` what they say: an InputSpec, or None where they are not given.
    """

    @functools.wraps(command)
    def with_spec(
        *args: Any,
        scale: float | None,
        mean: str | None,
        std: str | None,
        channel_order: str | None,
        **others: Any,
    ) -> Any:
        return command(*args, spec=_input_spec(scale, mean, std, channel_order), **others)

    options = (
        click.option("--scale", type=float, help="The model takes pixels times this (1 or 255)."),
        click.option("--mean", help="Subtracted after scaling: one number, or one a channel (0.485,0.456,0.406)."),
        click.option("--std", help="Divided by, after the mean: one number, or one a channel."),
        click.option(
            "--channel-order", type=click.Choice(["RGB", "BGR"]), help="Order of the model's colour channels."
        ),
    )
    wrapped = with_spec
    for option in options:
        wrapped = option(wrapped)
    return cast(Command, wrapped)


def _input_spec(scale: float | None, mean: str | None, std: str | None, channel_order: str | None) -> InputSpec | None:
    """The user's own preprocessing, or None where nothing was said (then it is found out)."""
    if scale is None and mean is None and std is None and channel_order is None:
        return None
    return InputSpec(
        name="as given",
        channel_order=channel_order or "RGB",
        scale=scale if scale is not None else 1.0,
        mean=_numbers("--mean", mean, 0.0),
        std=_numbers("--std", std, 1.0),
    )


def _numbers(option: str, text: str | None, default: float) -> tuple[float, ...]:
    if text is None:
        return (default,)
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OnnxspectError(
            f"{option} {text!r:.80}: not a number or a comma-separated list of numbers",
            "one number for all channels, or three with commas: red, green, blue",
        ) from None
    if len(values) not in (1, 3):
        raise OnnxspectError(
            f"{option} {text!r:.80}: {len(values)} values, not 1 or 3",
            "one number for all channels, or three with commas: red, green, blue",
        )
    return values


def run_context(device: str, seed: int, quiet: bool = False, progress: str = "auto") -> RunContext:
    """Seed, device and progress of a command."""
    observer = JsonLines() if progress == "json" and not quiet else Progressing(quiet)
    return RunContext(seed=seed, device=choose_device(device), observer=observer)
