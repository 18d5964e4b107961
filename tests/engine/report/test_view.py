"""The server of a folder of runs: what it answers, to whom, and that it only reads."""

from __future__ import annotations

import http.client
import re
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import supervised
from report_support import draw_found, patched, report_of
from run_folder_support import finished as write_run

from onnxspect.cli import listening
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import patch_document, view


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them with a patch; beside them a folder without one, and a link that leads out."""
    folder = tmp_path_factory.mktemp("runs")
    for name, verdict in (("bad <b>", "backdoored"), ("clean", "clean")):
        write_run(folder / name, report_of(verdict, hostile=name != "clean"))
    draw_found(folder / "bad <b>")
    patch_document.keep(patched(), folder / "bad <b>")
    write_run(folder / "deep" / "broken", {"verdict": "clean"})
    (folder / "nothing").mkdir()
    (folder / "link").symlink_to(folder / "clean")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[view.Server]:
    with view.Server(runs, listening.bound(0)) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: view.Server, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for value in (host or f"127.0.0.1:{port}").split(","):
        connection.putheader("Host", value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, dict(answer.getheaders())


def test_it_listens_on_loopback_alone(server: view.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_the_list(server: view.Server) -> None:
    status, text, headers = ask(server, "/")
    assert status == 200
    assert [r.name for r in server.runs] == ["bad <b>", "clean", "deep/broken"]
    assert "bad &lt;b&gt;" in text
    assert "<b>" not in text
    assert '<a href="/run/0/patch">' in text
    assert "damaged" in text
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "form-action 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_pages_of_a_run(server: view.Server) -> None:
    status, text, _ = ask(server, "/run/0")
    assert status == 200
    assert "A backdoor was found in this model" in text
    assert text.count("data:image/png") == 4
    assert "The patch holds" in ask(server, "/run/0/patch")[1]
    assert ask(server, "/run/2")[0] == 409  # the broken one says why


def test_two_runs_side_by_side(server: view.Server) -> None:
    status, text, _ = ask(server, "/compare?a=0&b=1")
    assert status == 200
    assert "The verdicts differ: backdoored, and clean." in text
    assert "1e-06" in text
    assert "same, bit for bit" in ask(server, "/compare?a=1&b=1")[1]
    assert ask(server, "/compare?a=0&b=2")[0] == 409


@pytest.mark.parametrize(
    "path",
    [
        "/run/3",
        "/run/0/verify",
        "/run/-1",
        "/run/00000000",
        "/../../etc/passwd",
        "/run/0/../../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/compare",
        "/compare?a=x&b=1",
        "/compare?a=99&b=1",
        "/run.sqlite",
        "//evil/",
        "/compare?" + "&".join(f"x{i}=1" for i in range(50)),
    ],
)
def test_nothing_else_is_there(server: view.Server, path: str) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:PORT,evil.example", "", "[::1]:PORT"]
)
def test_another_host_name_gets_nothing(server: view.Server, host: str) -> None:
    """DNS rebinding: a page elsewhere that leads its own name to this address sends that name."""
    status, text, _ = ask(server, "/", host=host.replace("PORT", str(server.server_address[1])) or "x")
    assert status == 421
    assert "bad &lt;b&gt;" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_it_takes_no_other_method(server: view.Server, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


def test_head_has_no_body(server: view.Server) -> None:
    status, text, headers = ask(server, "/", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_it_writes_nothing(server: view.Server, runs: Path) -> None:
    before = {p: p.lstat().st_mtime_ns for p in runs.rglob("*")}
    for path in ("/", "/run/0", "/run/1", "/run/0/patch", "/compare?a=0&b=1"):
        ask(server, path)
    assert {p: p.lstat().st_mtime_ns for p in runs.rglob("*")} == before


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match="no run in this folder"):
        view.Server(tmp_path, listening.bound(0))


def test_a_port_that_is_taken(server: view.Server) -> None:
    with pytest.raises(OnnxspectError, match="cannot be listened on"):
        listening.bound(server.server_address[1])


@pytest.mark.skipif(sys.platform != "linux", reason="no process is locked in elsewhere")
def test_the_command_serves_from_a_worker_that_is_locked_in(runs: Path, tmp_path: Path) -> None:
    with listening.bound(0) as free:
        port = free.getsockname()[1]
    process = supervised.started("view", runs, "--port", port, temporary=tmp_path)
    assert process.stderr is not None
    url = next(re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stderr)
    assert url is not None
    assert url[0] == f"http://127.0.0.1:{port}/"
    with urllib.request.urlopen(f"{url[0]}run/0", timeout=20) as page:
        assert page.status == 200
        assert b"<title>" in page.read()
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    status = Path(f"/proc/{worker}/status").read_text()
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no run in this folder"),
        (("--port", "many"), "'many' is not a valid integer"),
        (("--port", "65536"), "65536"),
    ],
)
def test_the_command_where_there_is_nothing_to_serve(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    ended = supervised.command("view", tmp_path, *options)
    assert ended.status == 2
    assert words in ended.err
