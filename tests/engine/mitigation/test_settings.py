"""Names of methods in both spellings, and their settings as `--set method.key=value`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxspect.cli.cmd_patch import command
from onnxspect.cli.main import run
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.registry import AUTO, CHOICES, MAKERS, METHODS, canonical, chosen
from onnxspect.engine.mitigation.settings import parsed, settable, shown


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_understood_in_both_spellings(name: str) -> None:
    assert "_" not in name
    old = name.replace("-", "_")
    assert canonical(old) == canonical(name) == name
    assert chosen(old) == chosen(name)
    assert chosen(old)[0].name == name


@pytest.mark.parametrize("alias", ["suppress-target", "target_logit_suppression"])
def test_the_fields_name_of_a_method_is_understood(alias: str) -> None:
    """Target-logit suppression keeps its name `withhold` in files and reports, and is found by the field's name too."""
    assert canonical(alias) == "withhold"
    (made,) = chosen(alias, **parsed([f"{alias}.ridge=0.7"], MAKERS))
    assert (made.name, made.ridge) == ("withhold", 0.7)  # type: ignore[attr-defined]
    with pytest.raises(OnnxspectError, match="withhold is not among the methods to try"):
        chosen("clp", **{f"{alias}.ridge": 0.7})


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_can_be_set_to_its_default(name: str) -> None:
    """What `docs/cli.md` lists is what `--set` takes: each default, written and read again, changes nothing."""
    texts = [f"{name}.{s.key}={shown(s.default)}" for s in settable(MAKERS[name]).values()]
    assert texts
    assert chosen(name, **parsed(texts, MAKERS)) == chosen(name)


def test_values_are_typed_by_the_fields() -> None:
    texts = ["fine-tune.training.epochs=7", "fine_tune.training.learning_rate=1e-4", "fine-tune.batch-norm=reestimate"]
    (made,) = chosen("fine-tune", **parsed(texts, MAKERS))
    assert (made.training.epochs, made.training.learning_rate, made.batch_norm) == (7, 1e-4, "reestimate")  # type: ignore[attr-defined]
    assert made.training.from_teacher == 0.0  # type: ignore[attr-defined] # the rest of it stays
    (clp,) = chosen("clp", **parsed(["clp.thresholds=4, 3"], MAKERS))
    assert clp.thresholds == (4.0, 3.0)  # type: ignore[attr-defined]
    (prune,) = chosen("prune", **parsed(["prune.layer=/conv.1/Relu=0"], MAKERS))
    assert prune.layer == "/conv.1/Relu=0"  # type: ignore[attr-defined] # an ONNX name may hold dots and "="


def test_of_several_methods_one_alone_is_set() -> None:
    made = {m.name: m for m in chosen(AUTO, ridge=0.5, **parsed(["prune.trials=2", "unlearn.rounds=1"], MAKERS))}
    assert (made["prune"].trials, made["unlearn"].rounds, made["withhold"].ridge) == (2, 1, 0.5)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("unlearn.rounds", "not of the form method.key=value", "unlearn.rounds=2"),
        ("rounds=2", "not of the form method.key=value", ""),
        ("pray.rounds=2", "no method 'pray'", "input-filter"),
        ("unlearn.round=2", "unlearn has no such setting", "did you mean rounds?"),
        ("unlearn.lessons=2", "unlearn has no such setting", "it has rounds, variants"),
        ("unlearn.rounds=two", "'two' is not a whole number", "the default is 3"),
        ("unlearn.rounds=1.5", "'1.5' is not a whole number", ""),
        ("unlearn.strength=1", "'1' is not 2 numbers with a comma between", "the default is 0.5,4"),
        ("input-filter.ridge=nan", "'nan' is not a number", ""),
        ("prune.layer=", "'' is not a word", "best"),
        ("withhold.layers=3,x", "is not whole numbers with commas between", ""),
    ],
)
def test_what_is_wrong_with_a_setting_is_said(text: str, words: str, hint: str) -> None:
    with pytest.raises(OnnxspectError) as caught:
        parsed([text], MAKERS)
    assert words in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "unlearn.rounds=0",
        "unlearn.strength=4,0.5",
        "unlearn.batch-norm=melted",
        "fine-tune.training.batch-size=0",
        "fine-prune.most-lost=2",
        "ibau.steps=0",
        "clp.thresholds=",
        "prune.strengths=0,1",
        "withhold.layers=0",
        "input-filter.form=round",
        "input-filter.false-positives=1",
        "input-filter.trials=0",
    ],
)
def test_values_that_make_no_sense_are_refused_before_the_work(text: str) -> None:
    with pytest.raises(OnnxspectError):
        chosen(text.partition(".")[0], **parsed([text], MAKERS))


def test_a_setting_of_a_method_that_is_not_tried_and_one_given_twice() -> None:
    with pytest.raises(OnnxspectError, match="input-filter is not among the methods to try \\(clp, prune"):
        chosen(AUTO, **parsed(["input-filter.top=0.1"], MAKERS))
    with pytest.raises(OnnxspectError, match=r"unlearn\.rounds: given twice"):
        parsed(["unlearn.rounds=1", "unlearn.rounds=2"], MAKERS)
    with pytest.raises(OnnxspectError, match="rounds of unlearn is given twice"):
        chosen("unlearn", rounds=1, **parsed(["unlearn.rounds=2"], MAKERS))


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "input_filter", "--form", "profile", "--false-positives", "0.1", "--layer", "best"],
        ["--method", "input-filter", "--set", "input_filter.form=profile", "--set", "input-filter.false_positives=0.1"],
        ["--method", "fine_tune", "--batch-norm", "reestimate"],
        ["--rounds", "2"],
    ],
)
def test_the_command_line_takes_old_and_new_options(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option is read and every setting typed before a file is: what is then missing is the run."""
    fixed = ["patch", "m.onnx", "--run", str(tmp_path / "none"), "--data", "d.npz", "-o", "o.onnx", "--device", "cpu"]
    assert run([*fixed, *options]) == 2
    assert "no run in this folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "input-filter", "--set", "input-filter.colour=red"], "it has form, false-positives, layer"),
        (["--method", "unlearn", "--set", "unlearn.rounds=many"], "'many' is not a whole number"),
        (["--method", "pray"], "'pray' is not one of 'auto', 'cut', 'clp'"),
        (["--method", "clp", "--rounds", "2"], "method clp has no setting rounds"),
    ],
)
def test_the_command_line_refuses_with_status_2(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["patch", "m.onnx", "--run", str(tmp_path / "none"), "--data", "d.npz", "-o", "o.onnx", "--device", "cpu"]
    assert run([*fixed, *options]) == 2
    assert words in capsys.readouterr().err


def test_help_names_the_methods_in_one_style() -> None:
    help_text = CliRunner().invoke(command, ["--help"]).output
    assert "|".join(CHOICES) in "".join(help_text.split())
    assert "--form" not in help_text
    assert "_" not in "".join(CHOICES)
