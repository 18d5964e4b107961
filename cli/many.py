"""`onnxspect scan` of many models: options in, one table, one page and one index out.

This process opens no model and no sample. Every model is scanned by a command of its own, with a worker that locks itself in
(engine/fleet); what it finds is read as a stranger's run folder is read.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from onnxspect.cli import command_table, exit_status, places
from onnxspect.cli.console import err, show, show_raw
from onnxspect.cli.json_lines import JsonLines
from onnxspect.converters.text import printable
from onnxspect.converters.whole import write_whole
from onnxspect.engine.fleet.cache import Cache, default_folder
from onnxspect.engine.fleet.fleet import Watching
from onnxspect.engine.fleet.index import Result
from onnxspect.engine.fleet.many import OWN_CACHE, Scanned, run
from onnxspect.engine.fleet.models import found
from onnxspect.engine.fleet.plan import Options, Scan
from onnxspect.engine.fleet.report_of import now, version
from onnxspect.engine.report import as_many

if TYPE_CHECKING:
    from onnxspect.engine.report.policy import Policy

PAGE, DOCUMENT = "index.html", "index.json"
#: Parameters of the command that are not those of each scan.
_OWN = frozenset({
    *("model", "out", "shelf", "jobs", "cache", "no_cache", "ray", "form", "as_json", "outputs", "policy_file"),
    *("fail_on", "exit_zero", "progress", "quiet"),
})  # fmt: skip
_ONE_ALONE = "of many models each has its own report: onnxspect report DIR/RUN"
#: Exit statuses, the worst first: a backdoor or a hostile file, whatever else failed; a scan that failed, a file that could not be
#: scanned, no verdict.
WORST = (
    exit_status.BACKDOOR,
    exit_status.FAILURE,
    exit_status.USAGE,
    exit_status.INCONCLUSIVE,
    exit_status.CLEAN,
)
_STATUS = {"hostile": exit_status.BACKDOOR, "refused": exit_status.USAGE, "failed": exit_status.FAILURE}


def scan(given: Sequence[str]) -> int:
    """Do it; the exit status.

    Args:
        given: the command line, after "scan".

    Raises:
        OnnxspectError: no model is meant, or nothing can be written.
        click.UsageError: an option that many models together do not have.
    """
    values = command_table.parsed("scan", list(given))
    form = _form(values)
    outputs = [_page_or_json(Path(p)) for p in values["outputs"]]
    rules = _policy(values["policy_file"])
    wanted = found(values["model"])
    common = _common(values, rules)
    out = Path(values["out"] or places.DEFAULT_FOLDERS["scan"])
    if values["no_cache"] and values["cache"]:
        raise click.UsageError("--cache and --no-cache contradict each other")
    kept = out / OWN_CACHE if values["no_cache"] else Path(values["cache"] or default_folder())
    watching = _Told(bool(values["quiet"]), values["progress"] == "json")
    with _interrupted_by_signals():
        scanned = run(
            wanted, common, out, Cache(kept, not values["no_cache"]), _jobs(values), values["ray"] or "", watching
        )
    fail_on = (
        "never" if values["exit_zero"] else values["fail_on"] or (rules.fail_on if rules else "") or "inconclusive"
    )
    document = _document(scanned, out, rules, fail_on)
    _write(document, [(out / PAGE, "html"), (out / DOCUMENT, "json"), *outputs])
    if form == "json":
        show_raw(as_many.as_json(document))
    else:
        show(as_many.table(document))
        if not values["quiet"]:
            err.print(f"page: {out / PAGE}")
    return int(document["exit_status"])


def _document(scanned: Sequence[Scanned], out: Path, rules: Policy | None, fail_on: str) -> dict[str, Any]:
    rows, statuses = [], []
    for one in scanned:
        accepted = rules is not None and bool(one.result.digest) and _accepted(one, rules)
        statuses.append(_status(one.outcome, bool(one.result.digest), fail_on, accepted))
        rows.append(
            {
                "path": str(one.path),
                "outcome": one.outcome,
                "p_value": one.result.p_value,
                "targets": list(one.result.targets),
                "cause": printable(one.cause, 400),
                "folder": one.result.folder,
                "seconds": one.result.seconds,
                "accepted": accepted,
                "digest": one.result.digest,
            }
        )
    status = next(s for s in WORST if s in statuses)
    return as_many.build(rows, str(out), version(), now(), status)


def _status(outcome: str, has_report: bool, fail_on: str, accepted: bool) -> int:
    """The exit status of one model; --fail-on and a policy let verdicts pass, and nothing else."""
    if outcome in _STATUS:
        return _STATUS[outcome]
    if not has_report:  # too few samples: as the scan of it alone ends
        return exit_status.INCONCLUSIVE
    return exit_status.of_scan(outcome, fail_on, accepted)


def _accepted(one: Scanned, rules: Policy) -> bool:
    from onnxspect.cli.report_output import accepted_findings

    return accepted_findings(one.report.document, one.folder, rules)[1]


def _write(document: dict[str, Any], files: Sequence[tuple[Path, str]]) -> None:
    for path, kind in files:
        text = as_many.page(document) if kind == "html" else as_many.as_json(document)
        write_whole(path, text.encode())


def _form(values: Mapping[str, Any]) -> str:
    form = "json" if values["as_json"] else str(values["form"] or "text")
    if form not in ("text", "json"):
        raise click.UsageError(f"--format {form}: {_ONE_ALONE} --format {form}")
    return form


def _page_or_json(path: Path) -> tuple[Path, str]:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("html", "json"):
        raise click.UsageError(
            f"-o {path}: of many models a page (.html) or a document (.json); {_ONE_ALONE} -o {path}"
        )
    return path, kind


def _jobs(values: Mapping[str, Any]) -> int | None:
    if values["jobs"] is None:
        return None
    text = str(values["jobs"])
    if not text.isdecimal() or not 0 < int(text) <= 4096:
        raise click.UsageError(f"--jobs {text}: a whole number from 1")
    return int(text)


def _policy(given: str | None) -> Policy | None:
    if given is None:
        return None
    from onnxspect.engine.report.policy import read

    return read(Path(given))


def _common(values: Mapping[str, Any], rules: Policy | None) -> Options:
    """Options of every scan, as they were given; those of a policy where they were not."""
    options: dict[str, tuple[str, ...]] = {}
    if rules is not None:
        named = {"data": rules.data, "train": rules.train, "preset": rules.preset or None}
        options |= {k: (str(v),) for k, v in named.items() if v is not None}
    for row in command_table.rows("scan"):
        value = values.get(row["name"])
        if row["name"] in _OWN or not row["option"] or value in (None, False, (), ""):
            continue
        name = row["declared"][0].removeprefix("--")
        if value == "" or row["flag"]:
            options[name] = ()
        else:
            options[name] = tuple(map(str, value)) if row["multiple"] else (str(value),)
    return options


class _Told(Watching):
    """Progress on stderr: a line a model, or a JSON object."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self._quiet, self._json = quiet, JsonLines() if as_json and not quiet else None

    def planned(self, total: int, known: int) -> None:
        """How many there are."""
        if self._json is not None:
            self._json.start("models", total, known)
        elif not self._quiet:
            err.print(f"{total} models" + (f", {known} of them known" if known else ""))

    def references(self, group: str, begins: bool, cause: str = "") -> None:
        """References are shared."""
        said = f"references that models of the same data share: {'being made' if begins else cause or 'made'}"
        self._notice(said)

    def ended(self, scan: Scan, result: Result, done: int, total: int) -> None:
        """A line."""
        shown = f"{result.outcome}  {scan.wanted.path}" + (
            f"  p = {result.p_value:.2g}" if result.p_value is not None else ""
        )
        if self._json is not None:
            self._json.advance("models", shown)
        elif not self._quiet:
            why = "" if result.digest else f"  {result.cause}"
            err.print(f"{done}/{total} {shown}{why}", style="dim")

    def again(self, scan: Scan, cause: str) -> None:
        """A scan goes on."""
        self._notice(f"{scan.wanted.path}: {cause}: tried again")

    def _notice(self, text: str) -> None:
        if self._json is not None:
            self._json.notice(text)
        elif not self._quiet:
            err.print(text, style="dim")


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as SIGINT does."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    before = {n: signal.signal(n, unwind) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedScansError from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class InterruptedScansError(Exception):
    """A signal came; all commands have ended, and what is finished is kept."""
