"""The front door: what `import onnxspect` offers, that it is light, typed and installed whole."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onnxspect

ROOT = Path(__file__).parent.parent
PROMISED = {"scan", "patch", "verify", "cleanse", "certify", "convert", "Subject", "Samples", "Report", "scan_many"}
#: What a user writes, with every kind of argument that the calls take; mypy is to find nothing in it but the last line.
USER = """
from pathlib import Path

import numpy as np
import onnx
import torch
from torch.utils.data import DataLoader, TensorDataset

from onnxspect import (
    InputSpec, OnnxspectError, Report, RunContext, Samples, SearchConfig, Subject, __version__, certify, cleanse, convert, patch,
    scan, verify,
)


def audit(module: torch.nn.Module, proto: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    data = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    run = RunContext(seed=1, device="cpu")
    report: Report = scan("model.onnx", "clean.npz", run=run)
    scan(Path("model.onnx"), Samples.from_arrays(images, labels), classes=[1, 2], search={"steps": 10})
    scan(proto.SerializeToString(), (images, labels), detectors="neural-cleanse", search=SearchConfig(steps=10))
    scan(proto, data, detectors=["max-margin"])
    scan(module, DataLoader(data, batch_size=8), spec=InputSpec("0..255", scale=255.0))
    scan(Subject.from_module(module, (1, 8, 8)), {"images": images, "labels": labels})
    trigger = report.classes[3].trigger
    area = 0.0 if trigger is None or not trigger.masked else float(trigger.mask.sum())
    try:
        done = patch("model.onnx", report, "clean.npz", "patched.onnx")
        proof = verify(done.out, "model.onnx", "unseen.npz", report)
    except OnnxspectError as error:
        print(error.message, error.hint, __version__)
        raise
    convert("model.keras", "model.onnx")
    cleanse("model.onnx", "train.npz", "out", report)
    certify("features.npz", (0, 1), "out")
    return area + proof.accuracy_after + report.p_value


wrong: int = scan("model.onnx", "clean.npz").verdict
"""


def test_what_is_promised_is_there() -> None:
    assert set(onnxspect.__all__) >= PROMISED
    assert set(dir(onnxspect)) >= set(onnxspect.__all__)
    for name in onnxspect.__all__:
        value = getattr(onnxspect, name)
        assert not inspect.ismodule(value), name
        assert name.startswith("__") or inspect.getdoc(value), f"{name} is not documented"
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        _ = onnxspect.scam  # type: ignore[attr-defined]


def test_no_name_is_a_module_too() -> None:
    """`import onnxspect.scan` must not be possible: it would put a module in the function's place."""
    for name in onnxspect.__all__:
        if not name.startswith("__"):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"onnxspect.{name}")


def test_types_and_values_agree() -> None:
    """What a type checker is told that a name is, and what it is at run time, come from the same place."""
    tree = ast.parse(Path(onnxspect.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed_names = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed_names == {name: (f"onnxspect.{module}", there) for name, (module, there) in onnxspect._PLACES.items()}
    assert {*typed_names, "__version__"} == set(onnxspect.__all__)


LIGHT = """
import sys
before = set(sys.modules)
import onnxspect
dir(onnxspect), onnxspect.__all__, onnxspect.__doc__
loaded = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(loaded), [m for m in sys.modules if m.startswith("onnxspect.")])
onnxspect.OnnxspectError
print([m for m in ("torch", "onnx", "numpy") if m in sys.modules])
onnxspect.scan
print([m for m in ("torch", "onnx", "numpy") if m in sys.modules])
"""


def test_importing_it_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "['onnxspect'] []"
    assert second == "[]"
    assert third == "['torch', 'onnx', 'numpy']"


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_of_the_module_that_is_run(option: str) -> None:
    command = [sys.executable, "-m", "onnxspect", option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"onnxspect, version {onnxspect.__version__}\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked; built from a copy of the sources, since a build leaves things beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("onnxspect", "cli", "converters", "engine", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("onnxspect-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_and_every_page(wheel: Path) -> None:
    sources = {
        Path("onnxspect") / path.relative_to(ROOT / "onnxspect" if top == "onnxspect" else ROOT)
        for top in ("onnxspect", "cli", "converters", "engine", "models")
        for kind in ("*.py", "*.j2", "*.onnx", "*.npz", "*.typed")
        for path in (ROOT / top).rglob(kind)
    }
    missing = sorted(str(p) for p in sources if not (wheel / p).is_file())
    assert not missing
    assert (wheel / "onnxspect" / "py.typed").is_file()


INSTALLED = """
import importlib, pkgutil, sys
import onnxspect, onnxspect.models.zoo
from onnxspect.engine.subject.subject import Subject
print(onnxspect.__file__)
print(onnxspect.__version__, Subject.from_onnx(onnxspect.models.zoo.path("fashion_mnist_clean")).classes)
"""


def test_the_wheel_works_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """From the unpacked wheel alone: where this very repository is installed too, the wheel comes first."""
    command = [sys.executable, "-c", INSTALLED]
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place, facts = done.stdout.splitlines()
    assert Path(place) == wheel / "onnxspect" / "__init__.py"
    assert facts == f"{onnxspect.__version__} 10"


def test_a_users_file_is_typed(wheel: Path, tmp_path: Path) -> None:
    """mypy --strict sees the calls, their arguments and results: it finds the one mistake that is in the file."""
    user = tmp_path / "user.py"
    user.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    command += ["--config-file", os.devnull, "--cache-dir", str(ROOT / ".mypy_cache" / "user"), "user.py"]
    environment = {**os.environ, "MYPYPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    line = USER.splitlines().index('wrong: int = scan("model.onnx", "clean.npz").verdict') + 1
    assert done.stdout.splitlines() == [
        f'user.py:{line}: error: Incompatible types in assignment (expression has type "str", variable has type "int")  '
        "[assignment]"
    ], done.stdout + done.stderr
