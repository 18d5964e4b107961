"""Mutation testing: are the tests of what judges, searches and writes able to fail? `make mutants`, or

    python benchmarks/mutants.py [--only engine/judge/verdict.py ...] [--sample 60] [--seed 0] [--show]

Mutants are those of cosmic-ray's operators (a number plus or minus one, another comparison or arithmetic operator, `not`, `and` for `or`,
True for False, break for continue, a loop that never runs), at places drawn from each file by --seed, one mutant a place. Each is run
against the test files that cover the file, until the first test fails: "killed", or "timeout" where it takes ten times as long as the
original. What survives is explained, or was killed by a new test, in docs/mutation.md.

cosmic-ray itself starts Python anew for each mutant, which means importing torch sixty times a file; here a process that has imported the
libraries, and nothing of this project, forks a child for each. The child imports the mutant in place of the file by an import hook, so
that no file is changed. mutmut looks for modules under the names of their files, and ours have other names (engine/judge is
onnxspect.engine.judge).

Annotations, decorators, docstrings, and `__all__` are left alone: no test could tell. Rows are added to benchmarks/results/mutants.json;
those of the same file are replaced. A run that is cut off keeps what it had: `tried` of the `drawn` ones.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# What all children share; nothing of this project, which each of them imports for itself.
import hypothesis
import onnx
import onnxruntime
import pytest
import scipy.stats
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
_SHARED = (hypothesis, onnx, onnxruntime, scipy.stats, torch)


def _of_search(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/search/test_{name}.py" for name in names)


_SEARCH = _of_search("objective", "loop", "batch", "search", "several_at_once")
#: File -> the tests that cover it, the quickest first.
COVERED = {
    "engine/judge/null_model.py": ("tests/engine/judge/test_null_model.py", "tests/engine/judge/test_gamma_order.py"),
    "engine/judge/verdict.py": (
        "tests/engine/judge/test_verdict.py",
        "tests/engine/judge/test_spacing.py",
        "tests/engine/judge/test_calibration.py",
        "tests/engine/judge/test_few_classes.py",
        "tests/engine/judge/test_spread.py",
    ),
    "engine/search/objective.py": _SEARCH,
    "engine/search/search.py": _SEARCH,
    "engine/search/batch.py": _of_search("loop", "batch", "objective", "search", "several_at_once"),
    "converters/proof/writeback.py": (
        "tests/converters/proof/test_writeback.py",
        "tests/converters/proof/test_writeback_external.py",
    ),
}
#: Operators whose mutants say little: no file would run with them.
_LEFT_OUT = ("RemoveDecorator", "VariableReplacer", "VariableInserter", "ExceptionReplacer")
#: Nor do bitwise operators in place of arithmetic ones: they raise on floating-point numbers.
_BITWISE = ("_BitOr", "_BitAnd", "_BitXor", "_LShift", "_RShift")
#: A mutant may take so many times as long as the original, and so many seconds more.
PATIENCE, GRACE = 10, 20.0


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Attributes:
        line, column: where it begins.
        operator: cosmic-ray's name.
        occurrence: which one of the operator's places in the file.
    """

    line: int
    column: int
    operator: str
    occurrence: int


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module another source."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        self._name, self._source, self._path = name, source, path

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def get_filename(self, _: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        if path != str(self._path):
            raise OSError("no bytecode of a mutant is kept")
        return self._source.encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; exit status 1 where the tests fail on an original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(COVERED), default=list(COVERED), help="these files")
    parser.add_argument("--sample", type=int, default=60, help="places a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="list the mutants and run none")
    parser.add_argument("--line", type=int, help="only mutants that begin on this line (with one --only)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    os.chdir(ROOT)
    for file in asked.only:
        source = Path(file).read_text()
        places = sum(1 for _ in by_place(source))
        drawn = sample(source, asked.sample, asked.seed)
        if asked.line is not None:
            drawn = [m for _, group in by_place(source) for m in group if m.line == asked.line]
        if asked.show:
            for mutant in drawn:
                print(file, describe(source, mutant))
            continue
        started = time.monotonic()
        outcome, seconds = tried(file, source, 600)
        if outcome != "survived":
            print(f"{file}: the tests fail on the original")
            return 1
        limit = PATIENCE * seconds + GRACE
        row: dict[str, Any] = {
            "file": file,
            "tests": list(COVERED[file]),
            "places": places,
            "drawn": len(drawn),
            "tried": 0,
        }
        row |= {"killed": 0, "timeout": 0, "survived": [], "seconds_of_the_original": round(seconds, 1), "seconds": 0}
        for mutant in drawn:
            changed = describe(source, mutant)
            outcome, _ = tried(file, changed_source(source, mutant), limit)
            row["tried"] += 1
            row["seconds"] = round(time.monotonic() - started)
            if outcome == "survived":
                row["survived"].append(changed)
            else:
                row[outcome] += 1
            print(f"{outcome:9} {file} {changed}", flush=True)
            if asked.line is None:
                keep(asked.out, row, asked.seed)  # what is cut off has its rows
        print(f"{file}: {row['tried'] - len(row['survived'])} of {row['tried']} killed")
    return 0


def by_place(source: str) -> Iterator[tuple[tuple[int, int], list[Mutant]]]:
    """All mutants of a file, by the place that they change, in the file's order."""
    spared = list(_spared(source))
    tree, provider = get_ast(source), OperatorProvider()
    found: dict[tuple[int, int], list[Mutant]] = {}
    nodes = list(ast_nodes(tree))
    for name in provider:
        if name in _LEFT_OUT or name.endswith(_BITWISE):
            continue
        operator, occurrence = provider[name](), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if not any(a <= start < b for a, b in spared):
                    found.setdefault(start, []).append(Mutant(*start, name, occurrence))
                occurrence += 1
    yield from sorted(found.items())


def _spared(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans (line, column) of annotations, decorators and `__all__`."""
    for node in ast.walk(ast.parse(source)):
        inner: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            inner = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            inner = [node.returns, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            inner = list(node.decorator_list)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            inner = [node.value]
        for part in inner:
            if part is not None and part.end_lineno is not None and part.end_col_offset is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def sample(source: str, count: int, seed: int) -> list[Mutant]:
    """One mutant at each of so many places, by chance; in that order, so that the first of them are a sample, too."""
    rng = random.Random(seed)
    groups = [group for _, group in by_place(source)]
    drawn = rng.sample(groups, min(count, len(groups)))
    return [rng.choice(group) for group in drawn]


def changed_source(source: str, mutant: Mutant) -> str:
    """The file with the change."""
    mutated = mutate_code(source, OperatorProvider()[mutant.operator](), mutant.occurrence)
    if mutated is None:
        raise ValueError(f"{mutant}: no such place")
    return str(mutated)


def describe(source: str, mutant: Mutant) -> str:
    """Line, what stands there, and what stands there instead."""
    before, after = source.splitlines(), changed_source(source, mutant).splitlines()
    line = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), mutant.line - 1)
    return f"{line + 1}: {before[line].strip()}  ->  {after[line].strip()}"


def tried(file: str, source: str, limit: float) -> tuple[str, float]:
    """("killed", "survived" or "timeout", seconds) of a file's tests where this is its source."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        name = "onnxspect." + file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Instead(name, source, ROOT / file))
        try:
            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *COVERED[file]])
        except BaseException:
            status = 1
        os._exit(int(status))
    while time.monotonic() - started < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            seconds = time.monotonic() - started
            return ("survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"), seconds
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", limit


def keep(out: Path, row: dict[str, Any], seed: int) -> None:
    """Add a file's row to the results, in place of an older one."""
    rows = json.loads(out.read_text())["rows"] if out.is_file() else []
    rows = [r for r in rows if r["file"] != row["file"]] + [row]
    result = {
        "benchmark": "mutants",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": seed,
        "versions": {name: metadata.version(name) for name in ("cosmic-ray", "pytest", "torch", "numpy", "scipy")},
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "rows": sorted(rows, key=lambda r: list(COVERED).index(r["file"])),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
