"""docs/bibliography.md: every citation in the code has an entry, every file that an entry names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/bibliography.md").read_text()
FILES = sorted(p for top in ("benchmarks", "cli", "converters", "engine", "models") for p in (ROOT / top).rglob("*.py"))
#: "Wang et al., 2019", "Tran et al. (2018)", "Fisher, 1936", "Beck and Teboulle, 2009"; lines may break anywhere.
CITATION = re.compile(r"([A-Z][\w'-]+)(?:\s+et\s+al\.|\s+and\s+[A-Z][\w'-]+)?(?:,\s+|\s+\()((?:19|20)\d\d)\b(?!-)")


def citations(text: str) -> set[tuple[str, str]]:
    """(first author, year) of each citation."""
    return set(CITATION.findall(text))


def test_every_citation_in_the_code_has_an_entry() -> None:
    known = citations(PAGE)
    missing = {
        f"{path.relative_to(ROOT)}: {author}, {year}"
        for path in FILES
        for author, year in citations(path.read_text().replace("\n#", "\n"))
        if (author, year) not in known
    }
    assert not missing


def test_papers_are_not_cited_by_number() -> None:
    numbered = re.compile(r"(?<![\w.,-])00[0-4](?:, (?:sec|Eq|Fig|Table|Alg)|'s\b)")
    assert not [str(p.relative_to(ROOT)) for p in FILES if numbered.search(p.read_text())]


@pytest.mark.parametrize(
    "text", ["NC (Wang et al., 2019), Eq. 3", "Wang et al. (2019)", "(Wang et\nal., 2019, sec. 2)"]
)
def test_citations_are_recognised(text: str) -> None:
    assert citations(text) == {("Wang", "2019")}


def test_every_file_that_an_entry_names_is_there() -> None:
    paths = set(re.findall(r"`((?:benchmarks|cli|converters|engine|models)/[\w/.]*)`", PAGE))
    assert len(paths) > 40
    assert not {p for p in paths if not (ROOT / p).exists()}
