"""Nobody's script breaks: command lines of the first complete state (650d43d), with every option that it had, are understood."""

from __future__ import annotations

import shlex
from typing import Any

import click
import pytest

from onnxspect.cli.command_table import parsed
from onnxspect.cli.former_spellings import understood
from onnxspect.cli.main import cli
from onnxspect.engine.cleansing.by_presence import FORMER_NAMES, TRIGGER_BEARING

PIXELS = "--channel-order RGB --std 0.2,0.2,0.2 --mean 0.5 --scale 255"
RUN = "--device cpu --seed 3 -q"
FORMERLY = (
    f"scan --resize m.onnx --data d --train t --preset quick --detector cepa --tap x --perturb-at y --out o --json {PIXELS} {RUN}",
    "scan m.onnx --data d --resize --quiet",
    "scan m.onnx --data d --resize",
    "convert m.pth -o m.onnx --factory a:b --input-shape 1,28,28 --framework torch-pickle --require-sandbox --json",
    "info m.onnx --json",
    f"patch --resize m.onnx --run r --data d -o p.onnx --method auto --target 3 --proactive --max-success 0.1 "
    f"--max-accuracy-lost 0.1 --json {RUN}",
    "patch m.onnx --run r --data d --output p.onnx --method fine_tune --batch-norm reestimate",
    "patch m.onnx --run r --data d -o p.onnx --method fine_prune --layer last-conv",
    "patch m.onnx --run r --data d -o p.onnx --method input_filter --form profile --false-positives 0.1",
    "patch m.onnx --run r --data d -o p.onnx --method unlearn --rounds 2 --resize",
    "patch m.onnx --run r --data d -o p.onnx --method ibau",
    f"verify m.onnx --against a.onnx --data d --run r --trigger t.npz --rescan quick --rescan-out s --strip --max-success 0.1 "
    f"--max-accuracy-lost 0.1 --max-rejected 0.1 {PIXELS} --resize --json {RUN}",
    "diff a.onnx b.onnx --json",
    f"cleanse m.onnx --train t --run r --detector carriers --tap v --target 1 --count 5 --expected 0.1 --silhouette 0.3 "
    f"--impurity 0.6 --as-written --truth t.npz --retrain n.onnx --out o {PIXELS} --json {RUN}",
    f"certify d.npz --classes 0 1 --model m.onnx --tap v --set both --centroids data --keep 0.9 --integrity box --epsilon 0.1 "
    f"--radius 1 --limit 9 --sanitise t --out o --json {RUN}",
    "report r --format sarif",
    f"demo --out o --json {RUN}",
)


def words(value: Any) -> list[str]:
    """What stands on the command line for a parameter that takes one thing, or several."""
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


@pytest.mark.parametrize("line", FORMERLY)
def test_a_command_line_of_then_is_understood(line: str) -> None:
    name, *rest = understood(shlex.split(line))
    read_by_the_supervisor = parsed(name, rest)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    read_by_the_worker = command.make_context(name, list(rest), parent=click.Context(cli)).params
    for key in ("model", "data", "run_folder", "out", "output"):
        here, there = read_by_the_worker.get(key), read_by_the_supervisor.get(key)
        assert words(here) == words(there)


@pytest.mark.parametrize(
    ("line", "way"),
    [
        ("--resize m.onnx", "try"),
        ("--resize", "try"),
        ("--resize --data d", "try"),
        ("--resize 256 --crop 224", "256"),
        ("--resize stretch", "stretch"),
        ("--resize=crop m.onnx", "crop"),
    ],
)
def test_resize_alone_is_a_flag(line: str, way: str) -> None:
    read = understood(line.split())
    given: Any = parsed("scan", ["--data", "d", *read, *([] if "m.onnx" in read else ["m.onnx"])])
    assert given["resize"] == way
    assert words(given["model"]) == ["m.onnx"]


def test_what_is_behind_a_double_dash_is_no_option() -> None:
    assert understood(["scan", "--", "--resize"]) == ["scan", "--", "--resize"]


def test_former_names_of_methods() -> None:
    assert FORMER_NAMES["carriers"] == TRIGGER_BEARING
