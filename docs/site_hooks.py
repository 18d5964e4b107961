"""For the site (mkdocs.yml): links that lead out of docs/, to the code, become links to the repository; without one, plain text."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#|/)([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Every link of a page that leads out of docs/."""
    folder = posixpath.dirname(page.file.src_uri)
    home = (config.repo_url or "").rstrip("/")
    return _LINK.sub(lambda m: inside(m[0], m[2], m[3], folder, home), markdown)


def inside(whole: str, text: str, target: str, folder: str, home: str) -> str:
    """A link as the site can have it.

    Args:
        whole: as it is written.
        text: its words.
        target: where it leads, from `folder`.
        folder: of the page, below docs/.
        home: URL of the repository; "" where there is none.
    """
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    if path.startswith("docs/"):
        return whole
    return f"[{text}]({home}/blob/HEAD/{path})" if home else text
