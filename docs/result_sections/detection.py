"""What scans find: the demo, boards of whole scans, single detectors."""

from __future__ import annotations

from typing import Any

from result_sections.words import classes, percent


def demo(r: dict[str, Any]) -> str:
    full = r["full_test_set"]
    planted = full["triggers"][0]
    accuracy = full["clean_accuracy"]
    rows = [
        (
            "infected model",
            f"{r['infected']['verdict']}, class {r['infected']['targets']} (true: {r['infected']['true']})",
        ),
        ("clean model", r["clean"]["verdict"]),
        (f"planted trigger, {planted['samples']} test images", f"{planted['before']:.2%} -> {planted['after']:.2%}"),
        (f"clean accuracy, {full['samples']} test images", f"{accuracy['before']:.2%} -> {accuracy['after']:.2%}"),
        ("wall time, CPU time", f"{r['wall_seconds']:.0f} s, {r['cpu_seconds']:.0f} s"),
        ("peak memory", f"{r['peak_memory_mib']} MiB"),
    ]
    table = "\n".join(f"| {a} | {b} |" for a, b in rows)
    note = r.get("note", "")
    return (
        f"## The demo\n\n`python benchmarks/demo.py --data-root DATA`, {r['date']}, onnxspect {r['version']}, "
        f"{r['machine']['processor']}, {r['cores']} cores, load {r['load']:.1f} before the start. {note}\n\n"
        f"| | measured |\n|---|---|\n{table}\n"
    )


def judging_half(r: dict[str, Any]) -> str:
    """Models of the bank that no constant was derived from; nothing where none was scanned."""
    models = [m for m in r["models"] if m["half"] == "judging"]
    if not models:
        return ""
    s = r["halves"]["judging"]["all"]
    rows = "\n".join(
        f"| {m['name']} | {m['classes']} | {m['network']} | {m['attack']} | {m['samples']} | {m['verdict']} | {classes(m['found'])} "
        f"| {classes(m['targets'])} | {m['p_value']:.2g} |"
        for m in models
    )
    missed = [m["name"] for m in models if m["infected"] and not set(m["found"]) & set(m["targets"])]
    plain = r["without_the_bank"]["judging"]
    told = r["halves"]["judging"]["probabilities"]
    scores = (
        f"P(backdoored) with a prior of 10 %, on {told['models']} models: cross-entropy {told['cross_entropy']:.3f}, Brier score "
        f"{told['brier']:.3f}. With a prior of {told['share_infected']:.0%}, which is the share of infected ones among them: "
        f"{told['with_that_prior']['cross_entropy']:.3f} and {told['with_that_prior']['brier']:.3f}.\n\n"
        if told
        else ""
    )
    return (
        "## Detection on the judging half of the bank, preset standard\n\n"
        "Networks by the recipes of models/bank.toml, so many a family as the time allowed (`python -m onnxspect.models.train_bank "
        "--part judging --most N`, `benchmarks/bank.py --half judging`), judged by "
        f"`{r['command']}`: p-values are calibrated by the shipped bank, which is of the tuning half alone. Of {s['infected']} infected ones "
        f"{s['found_with_right_target']} were found with the right target, and of {s['clean']} clean ones {s['false_alarms']} raised an alarm. "
        f"Without the bank, by the null models alone: {plain['all']['found_with_right_target']} and {plain['all']['false_alarms']}. "
        f"The paper's rule (MAD index above 2) finds {s['found_by_the_paper_rule']} and raises {s['false_alarms_of_the_paper_rule']} alarms. "
        f"{'Missed: ' + ', '.join(missed) + '.' if missed else ''}\n\n{scores}"
        "Share of clean models with a p-value below a level, with its exact 95 % interval:\n\n"
        + _levels(r["halves"]["judging"], plain)
        + "\n| classes | infected | found | without the bank | clean | alarms | without the bank |\n|---|---|---|---|---|---|---|\n"
        + "".join(
            f"| {name.strip()} | {of['infected']} | {of['found_with_right_target']} | {plain['classes'][name]['found_with_right_target']} "
            f"| {of['clean']} | {of['false_alarms']} | {plain['classes'][name]['false_alarms']} |\n"
            for name, of in r["halves"]["judging"]["classes"].items()
        )
        + _attacks(r["halves"]["judging"])
        + _samples(r["by_samples"])
        + "\n| model | classes | network | attack | samples | verdict | found | true | p |\n|---|---|---|---|---|---|---|---|---|\n"
        f"{rows}\n"
    )


def _attacks(board: dict[str, Any]) -> str:
    """A row for each kind of attack, how many are found of each step of the number of classes; and the areas under the ROC curve."""
    sizes = [name for name, attacks in board["attack_by_size"].items() if any(a["infected"] for a in attacks.values())]

    def cell(of: dict[str, Any] | None) -> str:
        return f"{of['found_with_right_target']} of {of['infected']}" if of and of["infected"] else "-"

    rows = [
        f"| {attack} | {cell(of)} | " + " | ".join(cell(board["attack_by_size"][s].get(attack)) for s in sizes) + " |\n"
        for attack, of in board["attack"].items()
        if of["infected"]
    ]
    areas = [f"{area:.3f} of {s} classes" for s in sizes if (area := board["roc_area"][s]) is not None]
    return (
        "\n| attack, found with the right target | all | " + " | ".join(f"{s} classes" for s in sizes) + " |\n"
        "|---|---|" + "---|" * len(sizes) + "\n" + "".join(rows) + f"\nArea under the ROC curve: {', '.join(areas)}.\n"
    )


def _samples(by_samples: dict[str, Any]) -> str:
    """A row for each number of samples on which the same models were scanned; nothing where that was not done."""
    rows = [
        f"| {n} | {of['infected']} | {of['found_with_right_target']} | {of['clean']} | {of['false_alarms']} | {of['inconclusive']} "
        f"| {'-' if of['roc_area'] is None else format(of['roc_area'], '.3f')} |\n"
        for n, of in by_samples.items()
    ]
    return (
        "\nThe same models of ten classes on fewer clean samples (`benchmarks/bank.py --samples N`):\n\n"
        "| samples | infected | found with the right target | clean | alarms | no verdict | area |\n|---|---|---|---|---|---|---|\n"
        + "".join(rows)
        if rows
        else ""
    )


def _levels(board: dict[str, Any], plain: dict[str, Any]) -> str:
    """A row for all clean models, and one for each number of classes."""
    names = [k for k in board["level"] if k != "clean"]

    def line(name: str, level: dict[str, Any], before: dict[str, Any]) -> str:
        cells = [
            f"{level[a]['share']:.3f} ({level[a]['interval_95'][0]:.3f} to {level[a]['interval_95'][1]:.3f}; {before[a]['share']:.3f})"
            for a in names
        ]
        return f"| {name} | {level['clean']} | " + " | ".join(cells) + " |\n"

    head = "| classes | clean | " + " | ".join(f"p < {a}" for a in names) + " |\n|---|---|" + "---|" * len(names) + "\n"
    by = [line(n.strip(), of, plain["level_by_classes"][n]) for n, of in board["level_by_classes"].items()]
    return (
        head
        + line("all", board["level"], plain["level"])
        + "".join(by)
        + "\nIn brackets, behind the interval, without the bank.\n"
    )


def unseen_families(r: dict[str, Any]) -> str:
    """Models of the tuning half, judged by a bank that their family, or their data set, had no part in."""
    levels = list(r["family"]["all"]["levels"])

    def cell(level: dict[str, Any]) -> str:
        low, high = level["interval_95"]
        return "-" if level["share"] is None else f"{level['share']:.3f} ({low:.3f} to {high:.3f})"

    rows = "".join(
        f"| {by} | {name} | {of['clean']} of {of['families']} | "
        + " | ".join(cell(of["levels"][a]) for a in levels)
        + f" | {of['below_the_verdicts_level']} of {of['infected']} |\n"
        for by in ("family", "data set")
        for name, of in r[by].items()
    )
    head = "| left out | classes | clean, families | " + " | ".join(f"p < {a}" for a in levels) + " | infected |\n"
    return (
        f"## The level on families and data sets that the bank has not seen\n\n`{r['command']}`, {r['date'][:10]}, on the tuning half: the "
        "bank and all that is fitted made again without a family, or without a data set, and its models judged by that; those that the "
        "others cover. Share of clean models with a p-value below a level, with a 95 % interval over families; and infected ones below the "
        "verdict's level. On other data the level is no more than a guess: the bank knows few data sets.\n\n"
        f"{head}|---|---|---|{'---|' * len(levels)}---|\n{rows}"
    )


def planted(r: dict[str, Any]) -> str:
    """What was recovered beside what was planted."""
    s = r["summary"]
    several = (
        f" Of {s['targets_of_several']} targets of models with several, {s['named_of_several']} are named."
        if s["targets_of_several"]
        else ""
    )
    rows = "".join(
        f"| {kind} | {of['shown']} | {of['overlap']:.2f} | {of['correlation']:.2f} |\n"
        for kind, of in s["by_attack"].items()
    )
    return (
        "## Recovered and planted triggers, judging half\n\n"
        f"`python {r['command']}`, {r['date']}. Of {s['targets']} planted targets {s['named']} are named, {s['shown']} with a change of pixels to "
        f"look at.{several} The recovered trigger and the planted one are put on the same {r['images']} clean images; overlap is the "
        "intersection over union of the pixels that change by at least half of the largest change, correlation that of the average "
        f"changes. **Of {s['patches']} patches {s['patches_overlapping']} overlap by a half or more**: the smallest change that works is "
        "often a part of the patch, or the same pixels elsewhere, for a network that pools sees a patch wherever it is.\n\n"
        f"| attack | targets shown | median overlap | median correlation |\n|---|---|---|---|\n{rows}"
    )


def with_training_set(r: dict[str, Any]) -> str:
    return detection(r, "Detection with the training set at hand, preset standard" + _searches_taken_over(r))


def with_training_set_fresh(r: dict[str, Any]) -> str:
    heading = "Detection with the training set at hand, on the two fresh lists of models"
    return detection(r, heading + _searches_taken_over(r))


def _searches_taken_over(r: dict[str, Any]) -> str:
    return f"\n\n{r['note']}" if r.get("note") else ""


def training_difference(r: dict[str, Any]) -> str:
    return dtinspector(r, "Training difference alone", " Every model of the zoos, with the training set that it saw.")


def sizes_and_rates(r: dict[str, Any]) -> str:
    return dtinspector(
        r,
        "DTInspector over trigger sizes and poison rates (Wang et al., 2022, Tables 4 and 6)",
        " Squares of 4 to 22 pixels a side on CIFAR-10's subset at 5 %; 0.07 to 50 % of MNIST's 40,000 images "
        "(benchmarks/dtinspector_models.toml).",
    )


def detection(r: dict[str, Any], heading: str = "") -> str:
    keys = (
        "infected",
        "found",
        "found_with_right_target",
        "clean",
        "false_alarms",
        "inconclusive",
        "errors",
        "roc_area",
    )
    head = "| | " + " | ".join(k.replace("_", " ") for k in keys) + " |\n|---|" + "---|" * len(keys)

    def line(name: str, s: dict[str, Any]) -> str:
        cells = ["-" if s[k] is None else (f"{s[k]:.3f}" if isinstance(s[k], float) else str(s[k])) for k in keys]
        return f"| {name} | " + " | ".join(cells) + " |"

    lines = [line("**all**", r["summary"])]
    lines += [line(name, s) for kind in ("by_network", "by_attack") for name, s in r[kind].items()]
    s = r["summary"]
    models = "\n".join(
        f"| {m['name']} | {m['verdict']} | {classes(m['found'])} | {classes(m['targets'])} | {m['p_value']:.2g} "
        f"| {_each(m)} | {m.get('seconds', 0):.0f} |"
        for m in r["models"]
    )
    missed = [m["name"] for m in r["models"] if m["infected"] and not set(m["found"]) & set(m["targets"])]
    misses = f"Missed: {', '.join(missed)}.\n\n" if missed else ""
    alarms = [m["name"] for m in r["models"] if not m["infected"] and m["verdict"] == "backdoored"]
    misses += f"False alarms: {', '.join(alarms)}.\n\n" if alarms else ""
    unfinished = r.get("not_finished")
    misses += f"Not run to the end: {', '.join(unfinished)}.\n\n" if unfinished else ""
    return (
        f"## {heading or 'Detection, preset ' + r['preset']}\n\n"
        f"`{r['command']}`, {r['date']}, {r['device']}, seed {r['seed']}. Beside the calibrated verdict, the "
        f"paper's rule (MAD index above 2) finds {s['found_by_the_paper_rule']} of {s['infected']} infected models and "
        f"raises {s['false_alarms_of_the_paper_rule']} alarms on {s['clean']} clean ones.\n\n{head}\n"
        + "\n".join(lines)
        + f"\n\n{misses}| model | verdict | found | true | p | most suspicious class by detector (p) | seconds |\n"
        + "|---|---|---|---|---|---|---|\n"
        + models
        + "\n"
    )


def cepa(r: dict[str, Any]) -> str:
    s = r["summary"]
    views = "\n".join(
        f"| {name} | {v['roc_area']:.2f} | {v['targets_below_0.05']} of {s['infected']} | {v['clean_below_0.05']} of {s['clean']} |"
        for name, v in s["separation"].items()
        if v.get("roc_area") is not None
    )
    return (
        f"## CEPA alone\n\n`{r['command']}`, {r['date']}, {r['device']}: {s['found_with_right_target']} of {s['infected']} "
        f"infected models with the right target, {s['false_alarms']} alarms on {s['clean']} clean ones.\n\n"
        "| statistic | ROC area, targets against the most extreme class of clean models | p below 0.05: targets | clean models |\n"
        f"|---|---|---|---|\n{views}\n"
    )


def dtinspector(r: dict[str, Any], heading: str = "DTInspector and max-margin alone", note: str = "") -> str:
    rows = "\n".join(
        f"| {m['model']} | {m['detector']} | {percent(m['asr']) if m['infected'] else '-'} | {m['verdict']} "
        f"| {classes(m['found'])} | {classes(m['targets'])} | {10 ** m['log10_p']:.2g} "
        f"| {classes(m.get('paper_found') or [])} | {m['cpu_seconds']:.0f} |"
        for m in r["rows"]
    )
    return (
        f"## {heading}\n\n`benchmarks/dtinspector.py`, {r['date']}, {r['threads']} thread.{note}\n\n"
        "| model | detector | ASR | verdict | found | true | p | by the paper's rule | CPU seconds |\n"
        f"|---|---|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _each(m: dict[str, Any]) -> str:
    by_detector = m.get("by_detector", {})
    return "; ".join(f"{n} {d['class']} ({d['p_value']:.1g})" for n, d in by_detector.items() if "class" in d) or m.get(
        "error", ""
    )
