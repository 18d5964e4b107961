"""Documents as JSON text: of reports, proofs and everything else that a command prints with --json."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

_UNSEEN = re.compile(r"[^\x00-\x7e]+")


def render(document: dict[str, Any]) -> str:
    """A document as it is stored and printed: whatever a terminal would obey, or UTF-8 cannot hold, is escaped as JSON does it."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    text = text.replace("\x7f", "\\u007f")  # the one character of ASCII that json leaves and that is none to be read
    return text if text.isascii() else _UNSEEN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in match.group())


def now() -> str:
    """The time in UTC, to the second, as reports write it: 2026-01-31T12:00:00Z."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
