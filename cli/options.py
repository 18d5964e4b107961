"""Options that several commands share, as decorators, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxspect.cli.console import Progressing
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.run import RunContext, choose_device
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resize, Resizing
from onnxspect.engine.subject.subject import InputSpec

Command = TypeVar("Command", bound=Callable[..., Any])

MODEL = click.argument("model", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")


def data(help_text: str = "Clean samples: a folder of images by class, an npz, or another form (docs/data.md).") -> Any:
    """--data PATH, required."""
    return click.option(
        "--data", "data", type=click.Path(path_type=Path), required=True, metavar="PATH", help=help_text
    )


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
        help="Where to compute.",
    )(command)


class _Way(click.ParamType):
    """What --resize takes: nothing, a number of pixels, "crop" or "stretch"."""

    name = "way"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if text in ("try", "crop", "stretch"):
            return Resize(text)
        if text.isdecimal() and int(text) > 0:
            return Resize("crop", int(text))
        return self.fail(
            f"{text!r} is no number of pixels, crop or stretch (a file after it is taken for one)", param, ctx
        )


def reading_options(command: Command) -> Command:
    """How the samples are read: --resize, --crop and --classes."""
    options = (
        click.option(
            "--resize",
            type=_Way(),
            is_flag=False,
            flag_value="try",
            metavar="[N|crop|stretch]",
            help="Bring images of another size to the model's: the shorter side to N pixels, then the centre; or stretch both sides. "
            "Alone it tries the usual ways.",
        ),
        click.option(
            "--crop",
            type=click.IntRange(min=1),
            metavar="N",
            help="With --resize: the size that is cut from the centre.",
        ),
        classes_option,
    )
    for option in options:
        command = option(command)
    return command


def classes_option(command: Command) -> Command:
    """--classes."""
    return click.option(
        "--classes",
        metavar="FILE",
        help="The model's class names in its order: a file with one a line (or JSON), or names with commas. Labels and folders are "
        "read by it.",
    )(command)


def resizing(resize: Resize | None, crop: int | None) -> Resizing:
    """What --resize and --crop mean together.

    Raises:
        OnnxspectError: a crop of what is not resized, or that is larger.
    """
    if crop is not None and resize is None:
        raise OnnxspectError("--crop says what is cut from resized images", f"--resize N --crop {crop}")
    return replace(resize, crop=crop) if resize is not None else False


def source(path: Path, classes: str | None) -> Source:
    """The samples of a path, in the order of classes that the user states."""
    return Source(path, ClassList.of(classes) if classes is not None else None)


def preprocessing_options(command: Command) -> Command:
    """How samples are read and how pixels are fed to the model, for users who know; without them it is found out."""
    command = reading_options(command)
    options = (
        click.option("--scale", type=float, help="The model takes pixels times this (1 or 255)."),
        click.option("--mean", help="Subtracted after scaling: one number, or one a channel (0.485,0.456,0.406)."),
        click.option("--std", help="Divided by, after the mean: one number, or one a channel."),
        click.option(
            "--channel-order", type=click.Choice(["RGB", "BGR"]), help="Order of the model's colour channels."
        ),
    )
    for option in options:
        command = option(command)
    return command


def input_spec(scale: float | None, mean: str | None, std: str | None, channel_order: str | None) -> InputSpec | None:
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
        raise OnnxspectError(f"{option} {text!r}: not a number or a comma-separated list of numbers") from None
    if len(values) not in (1, 3):
        raise OnnxspectError(f"{option} {text!r}: {len(values)} values, not 1 or 3")
    return values


def run_context(device: str, seed: int, quiet: bool = False) -> RunContext:
    """Seed, device and progress of a command."""
    return RunContext(seed=seed, device=choose_device(device), observer=Progressing(quiet))
