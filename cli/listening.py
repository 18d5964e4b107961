"""The port that `view` listens on: bound by the supervisor, since no worker may make a socket, and handed to the worker."""

from __future__ import annotations

import socket

from onnxspect.converters.errors import OnnxspectError

ADDRESS = "127.0.0.1"
_WAITING = 16
_inherited: socket.socket | None = None


def bound(port: int) -> socket.socket:
    """A socket that listens on the loopback address and on no other.

    Args:
        port: 0 takes a free one.

    Raises:
        OnnxspectError: the port is taken, or is none.
    """
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ADDRESS, port))
        made.listen(_WAITING)
    except (OSError, OverflowError) as error:
        made.close()
        raise OnnxspectError(f"port {port} cannot be listened on ({error})", "another --port, or none") from error
    return made


def url_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    return f"http://{ADDRESS}:{listening.getsockname()[1]}/"


def show(url: str) -> None:
    """Open it in the user's browser."""
    import webbrowser

    webbrowser.open(url)


def inherit(descriptor: int) -> None:
    """Take over the socket that the supervisor bound; `taken` gives it."""
    global _inherited
    _inherited = socket.socket(fileno=descriptor)
    _inherited.set_inheritable(False)


def taken() -> socket.socket | None:
    """The inherited socket, once; None where this process is nobody's worker."""
    global _inherited
    found, _inherited = _inherited, None
    return found
