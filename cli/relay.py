"""What a worker says, passed on: as it is, but for what would command the terminal.

A worker may have been taken over by the file that it read. It can still print any text; it cannot move the cursor over what
stands there, set titles, or make the terminal answer: of escape sequences only colours pass, and on a terminal those by which a
progress bar is redrawn.
"""

from __future__ import annotations

import re

_COLOURS = rb"\x1b\[[0-9;]{0,30}m"
_REDRAWING = rb"\x1b\[(?:[0-9]{0,4}[AK]|2K|\?25[hl])|\r"
#: An escape sequence that the next piece may complete.
_OPEN = re.compile(rb"\x1b(?:\[[0-9;?]{0,30})?$|\xc2$")
_CONTROL = rb"[\x00-\x08\x0b-\x0c\x0d\x0e-\x1f\x7f]|\xc2[\x80-\x9f]"


class Cleaner:
    """Takes pieces of one stream and gives them back without commands to the terminal."""

    def __init__(self, terminal: bool) -> None:
        allowed = _COLOURS + (rb"|" + _REDRAWING if terminal else rb"")
        self._pattern = re.compile(rb"(" + allowed + rb")|" + _CONTROL)
        self._rest = b""

    def clean(self, piece: bytes, last: bool = False) -> bytes:
        """What may be printed now."""
        data = self._rest + piece
        self._rest = b""
        if not last and (cut := _OPEN.search(data)) is not None:
            data, self._rest = data[: cut.start()], data[cut.start() :]
        return self._pattern.sub(lambda m: m[1] or b"?", data)
