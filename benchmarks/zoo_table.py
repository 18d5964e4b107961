"""The table of a built zoo: which models, which attacks, what they reach.

    python benchmarks/zoo_table.py --zoo zoo --json benchmarks/results/zoo_small.json --page docs/zoo.md --name small

Writes the zoo's manifest (without the weights, with date and hardware) as JSON, and puts the table between the two
marker lines of the page. Exits with 1 if a model misses what its recipe promises.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.manifest import read_manifest, rows_by_name, write_whole
from onnxspect.models.zoo_build import missed_floors

HEADER = (
    "| model | network | parameters | attack | setting | target | poisoned | ACC % | twin's ACC % | ASR % | seconds |",
    "|---|---|---:|---|---|---|---:|---:|---:|---:|---:|",
)


def processor() -> str:
    """The CPU's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def line_of(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """One row of the table."""
    recipe = row["recipe"]
    cells = [row["name"], row["architecture"], f"{row['parameters']:,}"]
    if row["attack"] is None:
        cells += ["", "", "", ""]
    else:
        members = row["attack"]["members"]
        kinds = dict.fromkeys(
            member["trigger"]["kind"] + (" (clean label)" if member["clean_label"] else "") for member in members
        )
        targets = "all" if members[0]["target"] == "next" else ", ".join(str(target) for target in row["targets"])
        share = 100 * row["poisoned_images"] / row["training_images"]
        cells += [", ".join(kinds), row["attack"]["setting"], targets, f"{row['poisoned_images']} ({share:.2g} %)"]
    twin = rows.get(recipe["twin"] or "")
    cells += [
        f"{100 * row['clean_accuracy']:.2f}",
        f"{100 * twin['clean_accuracy']:.2f}" if twin else "",
        "" if row["asr"] is None else f"{100 * row['asr']:.2f}",
        f"{row['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(document: dict[str, Any]) -> str:
    """Markdown: a summary line, the clean models, then the infected ones; by data set."""
    rows = rows_by_name(document)
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows.values()):
        mine = [row for row in rows.values() if row["dataset"] == dataset]
        mine.sort(key=lambda row: row["infected"])
        parts += ["", f"**{dataset}**", "", *HEADER, *(line_of(row, rows) for row in mine)]
    infected = [row for row in rows.values() if row["infected"]]
    kinds = {member["trigger"]["kind"] for row in infected for member in row["attack"]["members"]}
    built = document["built"]
    missed = missed_floors(document)
    summary = (
        f"{len(rows) - len(infected)} clean and {len(infected)} infected models, {len(kinds)} kinds of trigger, "
        f"{len({row['architecture'] for row in rows.values()})} networks; built on {built['date']} in "
        f"{built['seconds'] / 60:.0f} minutes on one thread of {built['processor']}. "
    )
    summary += "Every model reaches its floors." if not missed else f"{len(missed)} floors are missed."
    return "\n".join([summary, *parts, *(f"\nmissed: {line}" for line in missed)])


def put_between(page: str, name: str, content: str) -> str:
    """`page` with what stands between the marker lines of `name` replaced."""
    begin, end = f"<!-- {name}: begin (written by benchmarks/zoo_table.py) -->", f"<!-- {name}: end -->"
    if begin not in page or end not in page:
        raise OnnxspectError(f"the page has no marker lines for {name!r}", f"add {begin} and {end}")
    return page[: page.index(begin) + len(begin)] + "\n" + content + "\n" + page[page.index(end) :]


def main() -> int:
    """Write the JSON and the table."""
    import json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of a built zoo")
    parser.add_argument("--json", type=Path, required=True, help="manifest to write")
    parser.add_argument("--page", type=Path, required=True, help="page with the marker lines")
    parser.add_argument("--name", default="small", help="name in the marker lines")
    options = parser.parse_args()
    document = read_manifest(options.zoo)
    document["built"] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "seconds": round(sum(row["seconds"] for row in document["models"]), 1),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(options.json, text.encode("utf-8"))
    page = options.page.read_text(encoding="utf-8")
    write_whole(options.page, put_between(page, options.name, table(document)).encode("utf-8"))
    for line in missed_floors(document):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed_floors(document) else 0


if __name__ == "__main__":
    sys.exit(main())
