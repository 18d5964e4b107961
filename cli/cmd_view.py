"""`onnxspect view`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from onnxspect.cli import exit_status, listening
from onnxspect.cli.console import err
from onnxspect.cli.places import DEFAULT_RUNS
from onnxspect.engine.report.view import Server


@click.command("view", epilog="Exit status: 0 ended by Ctrl-C, 2 usage error, 4 failure.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), default=Path(DEFAULT_RUNS["view"]))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="To listen on.  [default: a free one]")
@click.option("--browser", is_flag=True, help="Open it in the browser.")
def command(folder: Path, port: int, browser: bool) -> int:
    """Show the pages of the runs in DIR (runs/ by default) in a browser, and compare two of them.

    They are served on 127.0.0.1 alone, to be read and nothing else, until Ctrl-C.

    \b
    Example:
      onnxspect view runs
    """
    inherited = listening.taken()
    with Server(folder, inherited or listening.bound(port)) as server:
        err.print(f"{len(server.runs)} runs at {server.url} until Ctrl-C")
        if browser and inherited is None:  # a worker starts no program: its supervisor did
            listening.show(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return exit_status.CLEAN
