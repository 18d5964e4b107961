"""Options that several commands share, as decorators, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxspect.cli.console import Progressing
from onnxspect.cli.json_lines import JsonLines
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext, choose_device
from onnxspect.engine.subject.subject import InputSpec

Command = TypeVar("Command", bound=Callable[..., Any])

MODEL = click.argument("model", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")


PROGRESS = click.option(
    "--progress",
    type=click.Choice(["auto", "json"]),
    default="auto",
    show_default=True,
    help="Bars or lines for people, or one JSON object a line for programs; on stderr.",
)


def data(help_text: str = "Clean samples: an npz with images and labels, or a folder of images by class.") -> Any:
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


def preprocessing_options(command: Command) -> Command:
    """How pixels are fed to the model, for users who know; without them it is found out."""
    options = (
        click.option("--resize", is_flag=True, help="Bring images of another size to the model's."),
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


def run_context(device: str, seed: int, quiet: bool = False, progress: str = "auto") -> RunContext:
    """Seed, device and progress of a command."""
    observer = JsonLines() if progress == "json" and not quiet else Progressing(quiet)
    return RunContext(seed=seed, device=choose_device(device), observer=observer)
