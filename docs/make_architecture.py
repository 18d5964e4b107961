"""Makes docs/architecture.svg and the tables of docs/architecture.md from the code: python docs/make_architecture.py.

Imports are read from the source (ast); nothing is imported or run. An import inside a function counts as any other, and so does
one for type checkers only. Files are folded into rooms, and a room may not import, by whatever way round, a room that imports
it: `Rooms` refuses that.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE, PAGE = ROOT / "docs/architecture.svg", ROOT / "docs/architecture.md"
PACKAGES = ("onnxspect", "cli", "engine", "converters", "models")


@dataclass(frozen=True)
class Room:
    """A folder, or a few files that belong together.

    Attributes:
        name: as the picture has it.
        words: what it is for, in two short lines.
        paths: its folders and files, from the repository's root; the longest path that a file lies under is its room's.
        column: where the picture has it, from left to right. Its row follows from the imports.
    """

    name: str
    words: tuple[str, str]
    paths: tuple[str, ...]
    column: float


ROOMS = (
    Room("onnxspect", ("the front door:", "names, fetched when first used"), ("onnxspect",), 1.5),
    Room("cli", ("options in, report out;", "supervisor and worker"), ("cli",), 1.5),
    Room("engine/fleet", ("many models: what is known,", "who scans, what came of it"), ("engine/fleet",), 0.5),
    Room("engine/jobs", ("whole jobs: scan, patch, prove,", "cleanse, certify, describe"), ("engine/jobs",), 1.5),
    Room("engine/report", ("the JSON report, and", "what is drawn from it"), ("engine/report",), 2),
    Room("engine/cleansing", ("which training samples", "are poisoned"), ("engine/cleansing",), 1),
    Room("engine/certification", ("what poisoning can do", "at worst"), ("engine/certification",), 0),
    Room("engine/detectors", ("what to search for, and", "what was found as evidence"), ("engine/detectors",), 1),
    Room("engine/mitigation", ("ways to patch, and the", "proof of the written file"), ("engine/mitigation",), 2),
    Room("engine/search", ("the one gradient search", "for triggers"), ("engine/search",), 1.5),
    Room("engine/subject", ("model, samples, references,", "memory, numerics policy"), ("engine/subject",), 1.5),
    Room(
        "engine/store",
        ("the ledger of a run (crash-", "safe), and reading a stranger's"),
        ("engine/store.py", "engine/run_folder.py", "engine/stored_report.py", "engine/stored_unit.py"),
        1,
    ),
    Room("engine/readers", ("labelled images, in the", "forms people keep them in"), ("engine/readers",), 0),
    Room("engine/judge", ("evidence, p-values,", "the decision"), ("engine/judge",), 1),
    Room(
        "engine/run, trigger, errors",
        ("seed, device, progress;", "a trigger and its stamp"),
        (
            "engine/__init__.py",
            "engine/run.py",
            "engine/version.py",
            "engine/trigger.py",
            "engine/displacement.py",
            "engine/errors.py",
            "engine/ahead.py",
            "engine/durations.py",
            "engine/workers.py",
        ),
        1,
    ),
    Room("converters/sources", ("any framework's file", "to ONNX"), ("converters/sources",), 2),
    Room("converters/proof", ("onnxruntime as oracle,", "parity, write-back"), ("converters/proof",), 2),
    Room(
        "converters/lowering", ("ONNX to a differentiable", "torch graph; ops/ by family"), ("converters/lowering",), 2
    ),
    Room("converters/file", ("reading an untrusted file,", "limits, external data"), ("converters/file",), 2),
    Room("converters/sandbox", ("the locked-in child", "process"), ("converters/sandbox",), 2),
    Room(
        "converters/errors, text",
        ("five kinds of errors,", "safe text, whole files"),
        (
            "converters/__init__.py",
            "converters/errors.py",
            "converters/npy.py",
            "converters/text.py",
            "converters/plugins.py",
            "converters/stages.py",
            "converters/whole.py",
        ),
        2,
    ),
    Room("models", ("zoo of attacks and networks;", "for tests, benchmarks, demo"), ("models",), 3),
)


@dataclass(frozen=True)
class Place:
    """Where something is: a file, a name defined in it ("Class.method" too), and a file that uses that name ("" for none)."""

    words: str
    path: str
    name: str
    used_in: str = ""


WHERE = (
    Place("Neural Cleanse", "engine/detectors/neural_cleanse.py", "NeuralCleanse"),
    Place("the list of detectors and presets", "engine/detectors/registry.py", "PRESETS"),
    Place("the gradient search", "engine/search/search.py", "search"),
    Place("held-out validation of a trigger", "engine/detectors/held_out.py", "held_out_validation"),
    Place("clean reference networks", "engine/subject/reference.py", "train_references"),
    Place("the p-value of a class beside its references", "engine/judge/null_model.py", "against_reference"),
    Place("the decision", "engine/judge/verdict.py", "decide"),
    Place("how many samples a verdict takes", "engine/subject/sample_size.py", "shortfalls"),
    Place("which form of data a path has", "engine/readers/forms.py", "open_reader"),
    Place("the choice of the input range", "engine/subject/input_range.py", "choose"),
    Place("whether classes are in another order", "engine/subject/class_order.py", "other_order"),
    Place("what no search can reach (dormant logic)", "engine/subject/unreached.py", "unreached"),
    Place("logic in the graph that is woken", "engine/detectors/graph_logic.py", "GraphLogic"),
    Place("the picture that wakes it (solving back)", "engine/search/solve_back.py", "solve_back"),
    Place("what every decision of a graph can do", "engine/subject/referee.py", "rulings"),
    Place("a file as it is deployed", "engine/mitigation/deployed.py", "deployed"),
    Place("the numerics policy: float32, bfloat16, TF32", "engine/subject/precision.py", "judging"),
    Place("how much memory is used at a time", "engine/subject/memory.py", "plan_memory"),
    Place("CUDA graphs", "engine/subject/stepper.py", "Recorded"),
    Place("the command's parent, which opens nothing", "cli/supervisor.py", "supervise"),
    Place("its worker, which locks itself in", "cli/worker.py", "main"),
    Place("what a command may read and write", "cli/places.py", "ROLES"),
    Place("the sandbox, the parent's side", "converters/sandbox/guard.py", "guarded"),
    Place("the sandbox, the child's side", "converters/sandbox/guard_child.py", "main"),
    Place("what is refused in an untrusted file", "converters/file/onnx_file.py", "check_onnx"),
    Place("what a file is called hostile for", "converters/file/malice.py", "refuse_hostile"),
    Place("the lowering of a graph", "converters/lowering/lower.py", "lower"),
    Place("the lowering of an operator (Conv)", "converters/lowering/ops/convolution.py", "conv"),
    Place("the comparison with onnxruntime", "converters/proof/parity.py", "Comparison"),
    Place("the tolerances of that comparison", "converters/proof/tolerances.py", "TOLERANCES"),
    Place("the write-back of weights into the file", "converters/proof/writeback.py", "write_back"),
    Place("the ledger", "engine/store.py", "Ledger"),
    Place("how an untrusted run folder is read", "engine/run_folder.py", "Snapshot"),
    Place("the check of a report that is read back", "engine/stored_report.py", "checked"),
    Place("a trigger and how it is stamped", "engine/trigger.py", "Trigger"),
    Place("the methods of `patch`", "engine/mitigation/registry.py", "METHODS"),
    Place("the proof of a patch", "engine/mitigation/verify.py", "verify"),
    Place("the report as JSON", "engine/report/document.py", "build"),
    Place("the five kinds of errors", "converters/errors.py", "Kind"),
    Place("the signature of a report", "engine/report/signature.py", "signed"),
    Place("the exit statuses", "cli/exit_status.py", "OF_VERDICT"),
    Place("how poisoned samples are named", "engine/jobs/cleanse.py", "cleanse"),
    Place("how many models are scanned", "engine/fleet/fleet.py", "Fleet"),
    Place("references that many models share", "engine/jobs/references.py", "search_references"),
    Place("certificates", "engine/certification/fixed.py", "certify_fixed"),
)

_SCAN, _PATCH = "engine/jobs/scan.py", "engine/jobs/patch.py"
WALKS = {
    "scan": (
        Place(
            "Options become arguments; `from onnxspect import scan` begins at the next step.",
            "cli/cmd_scan.py",
            "command",
        ),
        Place(
            "The detectors of the preset are chosen.", "engine/detectors/registry.py", "chosen", "engine/jobs/choice.py"
        ),
        Place("Model and samples are opened together.", "engine/jobs/case.py", "open_case", _SCAN),
        Place(
            "A locked-in child loads and runs the untrusted file first.",
            "converters/sandbox/guard.py",
            "guarded",
            "converters/file/probe.py",
        ),
        Place(
            "The graph is lowered to torch, up to its logits, and compared with onnxruntime.",
            "engine/subject/onnx_model.py",
            "open_onnx",
            "engine/subject/opening.py",
        ),
        Place("The run folder's ledger is opened; a finished run answers from it.", "engine/store.py", "Ledger", _SCAN),
        Place(
            "Preflight finds the preprocessing; dormant logic and too few samples are said before any search.",
            "engine/subject/preprocessing.py",
            "preflight",
            _SCAN,
        ),
        Place(
            "Reference networks are trained on clean samples.", "engine/subject/reference.py", "train_references", _SCAN
        ),
        Place(
            "Each detector searches model and references; each batch is validated on held-out samples and committed to the ledger.",
            "engine/detectors/base.py",
            "search_units",
            "engine/detectors/base.py",
        ),
        Place(
            "Evidence becomes p-values and one verdict; report and pictures go to the run folder.",
            "engine/judge/verdict.py",
            "decide_archive",
            _SCAN,
        ),
    ),
    "patch": (
        Place("Options become arguments and settings of methods.", "cli/cmd_patch.py", "command"),
        Place("The methods to try are made, the cheapest first.", "engine/mitigation/registry.py", "chosen", _PATCH),
        Place(
            "The triggers of the named classes are read from the scan's ledger.",
            "engine/mitigation/recovered.py",
            "read_recovered",
            _PATCH,
        ),
        Place(
            "Model and samples are opened as for a scan; the run must be this model's.",
            "engine/jobs/case.py",
            "open_case",
            _PATCH,
        ),
        Place("The destination is tried before any work is done.", "engine/jobs/export.py", "check_writable", _PATCH),
        Place(
            "It is measured up to which size a trigger is still the backdoor's.",
            "engine/mitigation/remainder.py",
            "with_size_limits",
            _PATCH,
        ),
        Place(
            "A method works out new weights (here: unlearning, on a copy in torch).",
            "engine/mitigation/unlearn.py",
            "Unlearn.edit",
            _PATCH,
        ),
        Place(
            "They go into the named initializers of a copy of the original, with the provenance, and the nodes of methods that add any.",
            "converters/proof/writeback.py",
            "write_back",
            "engine/jobs/export.py",
        ),
        Place(
            "That file is written to a scratch folder and measured there, in onnxruntime.",
            "engine/mitigation/verify.py",
            "verify",
            _PATCH,
        ),
        Place(
            "With `auto` a new search looks for what is left; the best file is written to its destination, whole or not at all.",
            "engine/jobs/export.py",
            "write_model",
            _PATCH,
        ),
    ),
}


def sources() -> list[str]:
    """All Python files of the packages, from the repository's root."""
    return sorted(p.relative_to(ROOT).as_posix() for top in PACKAGES for p in (ROOT / top).rglob("*.py"))


def room_of(path: str) -> str:
    """The name of the room that a file is in.

    Raises:
        ValueError: none: ROOMS lacks a folder.
    """
    found = [(len(p), r.name) for r in ROOMS for p in r.paths if path == p or path.startswith(f"{p}/")]
    if not found:
        raise ValueError(f"{path} is in no room: see ROOMS in docs/make_architecture.py")
    return max(found)[1]


@cache
def parsed(path: str) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def imported(path: str, modules: dict[str, str]) -> Iterator[str]:
    """The files of this project that a file imports.

    Args:
        path: the file.
        modules: module name -> file.
    """
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{path}: relative imports are not read")
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in modules else node.module for a in node.names
            ]
        yield from (modules[n] for n in names if n in modules)


def module_of(path: str) -> str:
    """The name under which a file is imported: the packages beside onnxspect/ are installed inside it."""
    parts = list(Path(path).with_suffix("").parts)
    parts = parts if parts[0] == "onnxspect" else ["onnxspect", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class Rooms:
    """Who imports whom.

    Attributes:
        arrows: (importing room, imported room) -> the imports behind it, as (file, file).
    """

    arrows: dict[tuple[str, str], list[tuple[str, str]]]

    @classmethod
    def read(cls) -> Rooms:
        """From the source as it is.

        Raises:
            ValueError: a file is in no room, or rooms import each other in a circle.
        """
        modules = {module_of(p): p for p in sources()}
        arrows = defaultdict(list)
        for path in modules.values():
            for other in sorted(set(imported(path, modules))):
                if room_of(path) != room_of(other):
                    arrows[room_of(path), room_of(other)].append((path, other))
        rooms = cls(dict(sorted(arrows.items())))
        rooms.rows()
        return rooms

    def below(self, name: str) -> list[str]:
        """The rooms that a room imports."""
        return [b for a, b in self.arrows if a == name]

    def rows(self) -> dict[str, int]:
        """The row of each room: one below the lowest room that imports it.

        Raises:
            ValueError: rooms import each other in a circle; names them and one import of each.
        """
        row: dict[str, int] = {}
        left = [r.name for r in ROOMS]
        while left:
            free = [n for n in left if not any(b == n and a in left for a, b in self.arrows)]
            if not free:
                circle = {f"{a} -> {b} ({f[0][0]})" for (a, b), f in self.arrows.items() if a in left and b in left}
                raise ValueError(f"rooms import each other in a circle, among {'; '.join(sorted(circle))}")
            for name in free:
                row[name] = max((row[a] + 1 for a, b in self.arrows if b == name), default=0)
            left = [n for n in left if n not in free]
        return row

    def drawn(self) -> list[tuple[str, str]]:
        """The arrows that no longer way between the same rooms already says."""

        @cache
        def reached(name: str) -> frozenset[str]:
            direct = self.below(name)
            return frozenset(direct).union(*(reached(b) for b in direct))

        return [(a, b) for a, b in self.arrows if not any(b in reached(m) for m in self.below(a) if m != b)]


WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 206, 58, 236, 84, 30
_COLOURS = {"engine": "#e7eefb", "converters": "#e8f4ea", "models": "#f3f1ea"}
_OUTSIDE = "#fbeee3"


def picture(rooms: Rooms) -> str:
    """The house as SVG: a white card, so that it can be read on a dark page too."""
    rows = rooms.rows()
    at = {r.name: (MARGIN + round(r.column * STEP_X), MARGIN + 30 + rows[r.name] * STEP_Y) for r in ROOMS}
    width = max(x for x, _ in at.values()) + WIDTH + MARGIN
    height = max(y for _, y in at.values()) + HEIGHT + MARGIN
    title = "The rooms of onnxspect and who imports whom"
    said = f"{len(rooms.arrows)} pairs of rooms import, {len(rooms.drawn())} arrows say it; none runs back up."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}" font-family="Helvetica, Arial, sans-serif">',
        f"<title>{title}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#52606d"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="34" font-size="12" fill="#52606d">{said}</text>',
    ]
    for a, b in rooms.drawn():
        path = _arrow(at[a], at[b], rows[b] - rows[a])
        lines.append(
            f'<path d="{path}" fill="none" stroke="#52606d" stroke-width="1.4" marker-end="url(#tip)">'
            f"<title>{escape(a)} imports {escape(b)}</title></path>"
        )
    for room in ROOMS:
        x, y = at[room.name]
        colour = _COLOURS.get(room.name.split("/")[0], _OUTSIDE)
        lines += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colour}" stroke="#9aa5b1"/>',
            *(
                f'<text x="{x + WIDTH // 2}" y="{y + dy}" text-anchor="middle" {style}>{escape(text)}</text>'
                for dy, style, text in (
                    (19, 'font-size="13" font-weight="bold" fill="#1f2933"', room.name),
                    (36, 'font-size="11" fill="#3e4c59"', room.words[0]),
                    (50, 'font-size="11" fill="#3e4c59"', room.words[1]),
                )
            ),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _arrow(start: tuple[int, int], end: tuple[int, int], rows: int) -> str:
    """From the lower edge of a box to the upper edge of one in the next row, or down and then into the side of one farther off."""
    (x1, y1), (x2, y2) = start, end
    middle = WIDTH // 2
    if rows == 1 or x1 == x2:
        return f"M{x1 + middle} {y1 + HEIGHT} L{x2 + middle} {y2}"
    side = x2 if x1 < x2 else x2 + WIDTH
    return f"M{x1 + middle} {y1 + HEIGHT} V{y2 + HEIGHT // 2} H{side}"


def defined(path: str) -> set[str]:
    """What a file defines at its top level, and the methods of its classes as "Class.method"."""
    found: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def mentioned(path: str) -> set[str]:
    """The names and attributes that a file uses."""
    nodes = list(ast.walk(parsed(path)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def checked(place: Place) -> Place:
    """The place, if the code has it so.

    Raises:
        ValueError: the name is not defined there, or not used where it is said to be.
    """
    if not (ROOT / place.path).is_file() or place.name not in defined(place.path):
        raise ValueError(f"{place.path} does not define {place.name}")
    if place.used_in and place.name.split(".")[-1] not in mentioned(place.used_in):
        raise ValueError(f"{place.used_in} does not use {place.name}")
    return place


def _link(path: str) -> str:
    return f"[{path}](../{path})"


def made_parts(rooms: Rooms) -> dict[str, str]:
    """The parts of the page that are made, by the name of their marker."""
    where = ["| where is | file | name |", "|---|---|---|"]
    where += [f"| {p.words} | {_link(p.path)} | `{p.name}` |" for p in map(checked, WHERE)]
    table = ["| room | imports |", "|---|---|"]
    for room in sorted(ROOMS, key=lambda r: (rooms.rows()[r.name], r.column)):
        table.append(f"| {room.name} | {'; '.join(rooms.below(room.name)) or 'none'} |")
    parts = {"where": "\n".join(where), "rooms": "\n".join(table)}
    for job, steps in WALKS.items():
        lines = [f"{i}. {p.words} {_link(p.path)}, `{p.name}`" for i, p in enumerate(map(checked, steps), 1)]
        parts[job] = "\n".join(lines)
    return parts


def page(text: str, rooms: Rooms) -> str:
    """The page with its made parts renewed; what stands outside the markers stays.

    Raises:
        ValueError: a marker is missing.
    """
    for name, part in made_parts(rooms).items():
        first, last = f"<!-- made: {name} -->\n", f"<!-- end: {name} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ValueError(f"docs/architecture.md: no single pair of markers for {name}")
        before, rest = text.split(first)
        text = f"{before}{first}\n{part}\n\n{last}{rest.split(last)[1]}"
    return text


if __name__ == "__main__":
    house = Rooms.read()
    PICTURE.write_text(picture(house), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), house), encoding="utf-8")
