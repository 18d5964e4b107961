"""Makes docs/results.md from the JSON files in benchmarks/results: python docs/make_results.py."""

from __future__ import annotations

import json
from pathlib import Path

from result_sections import detection, files, machines, mending

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def page() -> str:
    """The page; a section for each result that is there."""
    parts = [
        "# What was measured\n",
        "Made by `python docs/make_results.py` from the files in benchmarks/results. Each section has its date. Boards of earlier code, of before "
        "2026-11-27, are not shown but where nothing has taken their place: those with a training set.\n",
    ]
    sections = (
        ("demo.json", detection.demo),
        ("replay.json", detection.judging_half),
        ("unseen_families.json", detection.unseen_families),
        ("planted.json", detection.planted),
        ("detection_training_set.json", detection.with_training_set),
        ("detection_training_set_fresh.json", detection.with_training_set_fresh),
        ("cepa.json", detection.cepa),
        ("dtinspector.json", detection.dtinspector),
        ("dtinspector_sizes_and_rates.json", detection.sizes_and_rates),
        ("training_difference.json", detection.training_difference),
        ("patches_judging.json", mending.patches_of_judging_half),
        ("patches_small.json", mending.patches_of_zoo),
        ("patches_training_set.json", mending.patches_with_training_set),
        ("cleansing.json", mending.cleansing),
        ("cleansing_patterns.json", mending.patterns),
        ("cleansing_by_scan.json", mending.by_scan),
        ("cleansing_dtinspector.json", mending.by_scan),
        ("certification.json", mending.certification),
        ("search.json", machines.search),
        ("kill_resume.json", machines.kills),
        ("signals.json", machines.signals),
        ("large_model.json", machines.large),
        ("preset_times.json", machines.preset_times),
        ("time_left.json", machines.time_left),
        ("side_by_side.json", machines.side_by_side),
        ("many_classes.json", machines.many_classes),
        ("graph_logic.json", files.graph_logic),
        ("quantised_twins.json", files.quantised_twins),
        ("quantised_twins_further.json", files.further_twins),
        ("gpu.json", machines.gpu),
    )
    for file, section in sections:
        path = RESULTS / file
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "results.md").write_text(page())
