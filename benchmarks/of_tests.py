"""Modules of tests/ that benchmarks use too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent.parent / "tests"


def module_of_tests(name: str) -> ModuleType:
    """tests/NAME.py, which the test suite uses too."""
    if str(FOLDER) not in sys.path:  # its neighbours, behind everything else
        sys.path.append(str(FOLDER))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"tests/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
