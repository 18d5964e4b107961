"""`onnxspect view`: the pages of a folder of runs, served on this machine's loopback address and nowhere else.

It answers GET and HEAD, writes nothing, and takes no path from a request: a run is named by its place in the list that was
made of the folder. The Host header must be this server's own, so that a page elsewhere cannot reach it under another name (DNS
rebinding); every answer forbids frames and everything from outside.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from onnxspect.converters.text import all_visible, printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import as_html, as_patch_html, pages, patch_document, words
from onnxspect.engine.run_folder import has_ledger
from onnxspect.engine.store import Ledger

#: Runs that are listed, and folders below each other that are looked into, at most.
MOST_RUNS, DEEPEST = 10_000, 4
_RUN = re.compile(r"/run/(\d{1,6})(?:/(patch|verify))?")


@dataclass(frozen=True)
class Listed:
    """A run of the folder.

    Attributes:
        name: its path below the folder.
        folder: where it is.
        report: of the scan; None where it has not finished, or cannot be read.
        problem: why there is no report, or "".
        patched, verified: whether it has a document of a patch, of a verification.
    """

    name: str
    folder: Path
    report: dict[str, Any] | None
    problem: str
    patched: bool = False
    verified: bool = False


def listed(folder: Path) -> list[Listed]:
    """The runs in a folder, or the one that it is, by name. Links are not followed.

    Raises:
        OnnxspectError: there is none.
    """
    found = [_open(folder, path) for path in _runs(folder, DEEPEST)[:MOST_RUNS]]
    if not found:
        raise OnnxspectError(
            f"{printable(str(folder), 200)}: no run in this folder", "give the folder that scans wrote their runs to"
        )
    return found


def _runs(folder: Path, deep: int) -> list[Path]:
    if has_ledger(folder):
        return [folder]
    if deep == 0 or not folder.is_dir():
        return []
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))
    return [run for path in below for run in _runs(path, deep - 1)]


def _open(root: Path, folder: Path) -> Listed:
    name = folder.name if folder == root else folder.relative_to(root).as_posix()
    try:
        with Ledger(folder) as ledger:
            report = ledger.report()
    except OnnxspectError as error:
        return Listed(name, folder, None, error.message)
    has = [(folder / f"{kind}.json").is_file() for kind in (patch_document.PATCH, patch_document.VERIFY)]
    return Listed(name, folder, report, "", *has)


def index_page(runs: Sequence[Listed]) -> str:
    """The list of runs, with a form that compares two."""
    rows = [
        {
            "index": i,
            "name": run.name,
            "problem": run.problem,
            "patched": run.patched,
            "verified": run.verified,
            "report": run.report,
            "mood": "open" if run.report is None else as_html.MOOD[run.report["verdict"]],
        }
        for i, run in enumerate(runs)
    ]
    return pages.render("index", forms=True, runs=all_visible(rows), total=len(runs))


def compare_page(a: Listed, b: Listed) -> str:
    """Two finished runs side by side: what differs in what they were made of, and in what they say of each class."""
    return pages.render("compare", **all_visible(comparison(a, b)))


def comparison(a: Listed, b: Listed) -> dict[str, Any]:
    """What the page of two runs shows, as plain values.

    Raises:
        OnnxspectError: one of them has no report.
    """
    if a.report is None or b.report is None:
        raise OnnxspectError("a run without a report cannot be compared", "choose two finished runs")
    one, two = a.report, b.report
    facts = [
        ("verdict", one["verdict"], two["verdict"]),
        ("named classes", _named(one), _named(two)),
        ("p-value", f"{one['p_value']:.2g}", f"{two['p_value']:.2g}"),
        ("model", one["model"]["path"], two["model"]["path"]),
        ("SHA-256 of the model", one["model"]["sha256"] or "–", two["model"]["sha256"] or "–"),
        ("clean images", one["data"]["path"] or "–", two["data"]["path"] or "–"),
        ("SHA-256 of the images", one["data"]["sha256"] or "–", two["data"]["sha256"] or "–"),
        (
            "clean accuracy",
            words.share(one["preprocessing"]["clean_accuracy"], 1),
            words.share(two["preprocessing"]["clean_accuracy"], 1),
        ),
        ("preset", one["preset"], two["preset"]),
        ("seed", str(one["seed"]), str(two["seed"])),
        ("searches", _ran(one), _ran(two)),
        ("machine", one["device"], two["device"]),
        ("time", words.seconds(one["seconds"]), words.seconds(two["seconds"])),
        ("version", one["tool"]["version"], two["tool"]["version"]),
        ("digest", one["digest"], two["digest"]),
    ]
    return {
        "a": a.name,
        "b": b.name,
        "facts": [{"name": n, "a": x, "b": y, "same": x == y} for n, x, y in facts],
        "same": one["digest"] == two["digest"],
        "verdicts": (one["verdict"], two["verdict"]),
        "classes": _classes(one, two),
    }


def _classes(one: dict[str, Any], two: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a class that both have, the ones that moved most first."""
    rows = []
    for x, y in zip(one["classes"], two["classes"], strict=False):
        rows.append(
            {
                "index": x["index"],
                "label": words.label(x),
                "a": f"{x['p_value']:.2g}",
                "b": f"{y['p_value']:.2g}",
                "sort_a": x["p_value"],
                "sort_b": y["p_value"],
                "moved": abs(x["log10_p"] - y["log10_p"]),
                "named": (x["index"] in one["targets"]) or (y["index"] in two["targets"]),
            }
        )
    return sorted(rows, key=lambda r: (not r["named"], -r["moved"], r["index"]))


def _named(report: dict[str, Any]) -> str:
    return "; ".join(words.label(report["classes"][k]) for k in report["targets"]) or "none"


def _ran(report: dict[str, Any]) -> str:
    return ", ".join(d["name"] for d in report["detectors"] if d["status"] == "ran") or "none"


class Server(ThreadingHTTPServer):
    """The server of a folder of runs; `serve_forever` runs it, `server_close` frees the port.

    Args:
        folder: with runs.
        listening: on the loopback address; it is the server's from here on.

    Raises:
        OnnxspectError: there is no run.
    """

    daemon_threads = True

    def __init__(self, folder: Path, listening: socket.socket) -> None:
        # The process may be one that can make no socket, as the constructors of TCPServer and HTTPServer do.
        BaseServer.__init__(self, listening.getsockname(), _Handler)
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()
        try:
            self.runs = listed(folder)
        except OnnxspectError:
            listening.close()
            raise

    @property
    def url(self) -> str:
        """Where it is to be found."""
        return f"http://{self.server_name}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "onnxspect", ""
    #: Seconds that a silent client may keep a connection.
    timeout = 30

    def do_GET(self) -> None:
        status, body = self._answer()
        data = body.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(data))),
            ("Content-Security-Policy", f"{pages.policy(forms=True)}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str]:
        name, port = self.server.server_name, self.server.server_port
        if self.headers.get_all("Host") not in ([f"{name}:{port}"], [f"localhost:{port}"]):
            return HTTPStatus.MISDIRECTED_REQUEST, pages.render(
                "message", text="This server answers under its own name alone."
            )
        try:
            asked = urlsplit(self.path)
            return HTTPStatus.OK, self._page(asked.path, parse_qs(asked.query, max_num_fields=8))
        except (LookupError, ValueError):
            return HTTPStatus.NOT_FOUND, pages.render("message", text="There is no such page.")
        except OnnxspectError as error:
            return HTTPStatus.CONFLICT, pages.render("message", text=printable(str(error), 400))

    def _page(self, path: str, query: dict[str, list[str]]) -> str:
        runs = self.server.runs
        if path == "/":
            return index_page(runs)
        if path == "/compare":
            return compare_page(runs[_number(query["a"][0])], runs[_number(query["b"][0])])
        match = _RUN.fullmatch(path)
        if match is None:
            raise LookupError(path)
        run, kind = runs[int(match[1])], match[2]
        if kind is None:
            if run.report is None:
                raise OnnxspectError(run.problem)
            return as_html.render(run.report, run.folder)
        document = patch_document.read(run.folder, kind)
        if document is None:
            raise LookupError(path)
        return as_patch_html.render(document)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: whoever asks is on this machine."""


def _number(text: str) -> int:
    """A place in the list.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"[0-9]{1,6}", text) is None:
        raise ValueError(text)
    return int(text)
