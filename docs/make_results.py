"""Makes docs/results.md from the JSON files in benchmarks/results: python docs/make_results.py."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def page() -> str:
    """The page; a section for each result that is there."""
    parts = [
        "# What was measured\n",
        "Made by `python docs/make_results.py` from the files in benchmarks/results. Each section has its date: detection boards of before "
        "2026-11-27 are of code that searched every class once, and are not of what is shipped now; "
        "the judging half of the bank, below the demo, is.\n",
    ]
    sections = (
        ("demo.json", _demo),
        ("replay.json", _judging_half),
        ("detection_standard.json", _detection),
        ("detection_fresh.json", _fresh),
        ("detection_fresh_infected.json", _fresh_infected),
        ("detection_training_set.json", _with_training_set),
        ("detection_training_set_fresh.json", _with_training_set_fresh),
        ("detection_quick.json", _detection),
        ("cepa.json", _cepa),
        ("dtinspector.json", _dtinspector),
        ("dtinspector_sizes_and_rates.json", _sizes_and_rates),
        ("training_difference.json", _training_difference),
        ("patches_small.json", _patches),
        ("patches_training_set.json", _patches_with_training_set),
        ("cleansing.json", _cleansing),
        ("cleansing_patterns.json", _patterns),
        ("cleansing_by_scan.json", _by_scan),
        ("cleansing_dtinspector.json", _by_scan),
        ("certification.json", _certification),
        ("search.json", _search),
        ("kill_resume.json", _kills),
        ("signals.json", _signals),
        ("large_model.json", _large),
        ("preset_times.json", _preset_times),
        ("side_by_side.json", _side_by_side),
        ("many_classes.json", _many_classes),
        ("graph_logic.json", _graph_logic),
        ("quantised_twins.json", _quantised_twins),
        ("gpu.json", _gpu),
    )
    for file, section in sections:
        path = RESULTS / file
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts)


def _demo(r: dict[str, Any]) -> str:
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


def _judging_half(r: dict[str, Any]) -> str:
    """Models of the bank that no constant was derived from; nothing where none was scanned."""
    models = [m for m in r["models"] if m["half"] == "judging"]
    if not models:
        return ""
    s = r["halves"]["judging"]["all"]
    rows = "\n".join(
        f"| {m['name']} | {m['classes']} | {m['network']} | {m['attack']} | {m['samples']} | {m['verdict']} | {_classes(m['found'])} "
        f"| {_classes(m['targets'])} | {m['p_value']:.2g} |"
        for m in models
    )
    missed = [m["name"] for m in models if m["infected"] and not set(m["found"]) & set(m["targets"])]
    return (
        "## Detection on the judging half of the bank, preset standard\n\n"
        "Networks by the recipes of models/bank.toml, one clean and one infected a family as far as they went "
        "(`python -m onnxspect.models.train_bank --part judging --most 1`, `benchmarks/bank.py --half judging`), judged by "
        f"`{r['command']}`. Of {s['infected']} infected ones {s['found_with_right_target']} were found with the right target, and of "
        f"{s['clean']} clean ones {s['false_alarms']} raised an alarm; the paper's rule (MAD index above 2) finds "
        f"{s['found_by_the_paper_rule']} and raises {s['false_alarms_of_the_paper_rule']} alarms. "
        f"{'Missed: ' + ', '.join(missed) + '. ' if missed else ''}So few say little about a rate: {s['clean']} clean models without an alarm "
        "are no proof of a level.\n\n"
        "| model | classes | network | attack | samples | verdict | found | true | p |\n|---|---|---|---|---|---|---|---|---|\n"
        f"{rows}\n"
    )


def _fresh(r: dict[str, Any]) -> str:
    return _detection(
        r,
        "Detection on models that no setting was chosen on\n\nThey are those of benchmarks/fresh_models.toml, trained and "
        "scanned when the null model's settings were fixed.",
    )


def _fresh_infected(r: dict[str, Any]) -> str:
    weak = [f"{m['name']} ({_percent(m['asr'])})" for m in r["models"] if m["infected"] and m["asr"] < 0.8]
    note = f" The attack did not take on {', '.join(weak)}: its ASR is in brackets." if weak else ""
    return _detection(
        r,
        "Detection on a second fresh draw: twelve of the zoo's attacks, drawn by lot\n\nThey are those of "
        f"benchmarks/fresh_infected.toml, with other seeds, targets, places and patterns, trained and scanned once.{note}",
    )


def _with_training_set(r: dict[str, Any]) -> str:
    return _detection(r, "Detection with the training set at hand, preset standard" + _searches_taken_over(r))


def _with_training_set_fresh(r: dict[str, Any]) -> str:
    heading = "Detection with the training set at hand, on the two fresh lists of models"
    return _detection(r, heading + _searches_taken_over(r))


def _searches_taken_over(r: dict[str, Any]) -> str:
    return f"\n\n{r['note']}" if r.get("note") else ""


def _training_difference(r: dict[str, Any]) -> str:
    return _dtinspector(r, "Training difference alone", " Every model of the zoos, with the training set that it saw.")


def _patches_with_training_set(r: dict[str, Any]) -> str:
    return _patches(r, "Patches with the training set at hand")


def _sizes_and_rates(r: dict[str, Any]) -> str:
    return _dtinspector(
        r,
        "DTInspector over trigger sizes and poison rates (Wang et al., 2022, Tables 4 and 6)",
        " Squares of 4 to 22 pixels a side on CIFAR-10's subset at 5 %; 0.07 to 50 % of MNIST's 40,000 images "
        "(benchmarks/dtinspector_models.toml).",
    )


def _detection(r: dict[str, Any], heading: str = "") -> str:
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
        f"| {m['name']} | {m['verdict']} | {_classes(m['found'])} | {_classes(m['targets'])} | {m['p_value']:.2g} "
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


def _cepa(r: dict[str, Any]) -> str:
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


def _dtinspector(r: dict[str, Any], heading: str = "DTInspector and max-margin alone", note: str = "") -> str:
    rows = "\n".join(
        f"| {m['model']} | {m['detector']} | {_percent(m['asr']) if m['infected'] else '-'} | {m['verdict']} "
        f"| {_classes(m['found'])} | {_classes(m['targets'])} | {10 ** m['log10_p']:.2g} "
        f"| {_classes(m.get('paper_found') or [])} | {m['cpu_seconds']:.0f} |"
        for m in r["rows"]
    )
    return (
        f"## {heading}\n\n`benchmarks/dtinspector.py`, {r['date']}, {r['threads']} thread.{note}\n\n"
        "| model | detector | ASR | verdict | found | true | p | by the paper's rule | CPU seconds |\n"
        f"|---|---|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _patches(r: dict[str, Any], heading: str = "Patches") -> str:
    rows = "\n".join(
        f"| {m['model']} | {m['method']} | {m.get('kept') or 'nothing'} | {_percent(m.get('asr_before'))} "
        f"| {_percent(m.get('asr_after'))} | {_percent(m.get('unstamped_after'))} | {_percent(m.get('accuracy_before'))} "
        f"| {_percent(m.get('accuracy_after'))} | {m['images']} | {m.get('cpu_seconds', '-')} |"
        for m in r["rows"]
    )
    return (
        f"## {heading}\n\n`{r['command']}`, {r['date']}, {r['device']}. True triggers, in onnxruntime, on unseen "
        f"images; the target is {r['target']}. Unstamped: images of other classes that the patched file takes for the target "
        f"without any trigger, which no patch can go below.\n\n{_patches_in_short(r)}\n\n"
        f"| model | method | written by | ASR before | after | unstamped | accuracy before | after | images | CPU seconds |\n"
        f"|---|---|---|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _patches_in_short(r: dict[str, Any]) -> str:
    """A sentence a method: what it reached over the models that it wrote, or how its filter did on patches of pixels."""
    lines = []
    for method, s in r["summary"].items():
        caught = s.get("filter_on_patches")
        if caught:
            lines.append(
                f"{method}, on {caught['models']} attacks by a patch of pixels: {_percent(caught['false_positives_median'])} of "
                f"clean images rejected (median), {_percent(caught['false_negatives_median'])} of stamped ones let through "
                f"(median; worst {_percent(caught['false_negatives_worst'])}, images counted that the trigger does not lead; of "
                f"those that it leads {_percent(caught['led_and_let_through_median'])}, worst "
                f"{_percent(caught['led_and_let_through_worst'])})."
            )
        elif "written" in s:
            w = s["written"]
            kept = [m["kept"] for m in r["rows"] if m["method"] == method and m["written"]]
            by = ", ".join(f"{kept.count(k)} by {k}" for k in dict.fromkeys(sorted(kept, key=kept.count, reverse=True)))
            lines.append(
                f"{method}, over the {s['files']} files it wrote of {s['models']} ({by}): ASR {_percent(w['asr_median'])} in the median, "
                f"{_percent(w['asr_worst'])} at worst; accuracy lost {_percent(w['accuracy_lost_median'])} in the median, "
                f"{_percent(w['accuracy_lost_worst'])} at worst."
            )
    if r.get("note"):
        lines.append(r["note"])
    return "\n".join(f"- {line}" for line in lines)


def _cleansing(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    head = "| model | pattern | sources | " + " | ".join(f"{m} TPR / FPR" for m in methods) + " | retrained ASR |"
    rows = "\n".join(
        f"| {m['name']} | {m['pattern']} | {m['sources']} | "
        + " | ".join(f"{_percent(m['methods'][x]['tpr'])} / {_percent(m['methods'][x]['fpr'])}" for x in methods)
        + f" | {_percent((m.get('retrained') or {}).get('asr'))} |"
        for m in r["models"]
    )
    mean = " | ".join(f"{_percent(v['tpr'])} / {_percent(v['fpr'])}" for v in r["mean"].values())
    return (
        f"## Cleansing of training sets\n\n`benchmarks/cleansing.py`, {r['date']}; the target class is given to all methods. "
        f"FPR is of clean samples labelled as the target.\n\n{head}\n|{'---|' * (len(methods) + 4)}\n{rows}\n| **mean** | | | {mean} | |\n"
    )


def _patterns(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    short = {"spectral-signatures": "SS", "activation-clustering": "AC", "cluster-impurity": "CI"}
    models = sorted(r["models"], key=lambda m: (m["pattern"], m["sources"] == "all", m["sources"]))
    rows = "\n".join(
        f"| {m['pattern']} | {9 if m['sources'] == 'all' else m['sources']} | {_percent(m['asr'])} / {_percent(m['clean_accuracy'])} | "
        + " | ".join(f"{_percent(m['methods'][x]['tpr'])} / {_percent(m['methods'][x]['fpr'])}" for x in methods)
        + f" | {_percent(m['retrained']['asr'])} / {_percent(m['retrained']['clean_accuracy'])} |"
        for m in models
    )
    mean = " | ".join(f"{_percent(v['tpr'])} / {_percent(v['fpr'])}" for v in r["mean"].values())
    again = [m["retrained"] for m in models]
    change = [m["clean_accuracy"] - m["twin_accuracy"] for m in again]
    head = " | ".join(f"{short.get(m, 'RE')} TPR / FPR" for m in methods)
    return (
        f"## Cleansing: the patterns A-F\n\n`benchmarks/cleansing.py --build DIR --attack A1 ... --retrain`, {r['date']}: "
        f"LeNet-5 on {models[0]['training_images']} images of Fashion-MNIST, one network a row; the target class is given to "
        "all methods. The network trained without poison has an accuracy of "
        f"{_percent(again[0]['twin_accuracy'])}; trained again on what RE keeps, it differs from that by "
        f"{100 * sum(change) / len(change):+.2f} points on average ({100 * min(change):+.1f} to {100 * max(change):+.1f}), "
        f"and ASR is at most {_percent(max(m['asr'] for m in again))}.\n\n"
        f"| pattern | sources | ASR / accuracy | {head} | trained again: ASR / accuracy |\n|{'---|' * (len(methods) + 4)}\n"
        f"{rows}\n| **mean** | | | {mean} | |\n"
    )


def _by_scan(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    rows = "\n".join(
        f"| {m['name']} | {m['pattern']} | {_classes(m['found'])} | {_classes(m['target'])} "
        f"| {_percent(rates['tpr'])} / {_percent(rates['fpr'])} "
        f"| {_percent(m['asr'])} | {_percent(m['retrained']['asr'])} "
        f"| {_percent(m['clean_accuracy'])} | {_percent(m['retrained']['clean_accuracy'])} |"
        for m in r["models"]
        for rates in m["methods"].values()
    )
    asked = " ".join(f"--by-scan {name}" for name in methods[0].split(" + "))
    return (
        f"## Cleansing by what a scan finds: {methods[0]}\n\n`benchmarks/cleansing.py {asked} --retrain`, {r['date']} (Wang et al., 2022, B.5); "
        f"the scan is given no class. {r.get('note', '')}\n\n"
        "| model | attack | found | true | TPR / FPR | ASR | trained again | accuracy | trained again |\n"
        f"|---|---|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _certification(r: dict[str, Any]) -> str:
    lines = []
    for c in r["configurations"]:
        what = c["report"]["set"]
        name = " | ".join(
            {"both": "sphere and slab"}.get(x, x) for x in (what["kind"], what["centroids"], what["integrity"])
        )
        for row in c["report"]["certificates"]:
            any_split = row.get("upper_bound_any_split")
            lines.append(
                f"| {name} | {row['epsilon']:g} | {row['upper_bound']:.4f}"
                + (f" ({any_split:.4f} for any split)" if any_split is not None and row["epsilon"] > 0 else "")
                + f" | {row['attack_loss']:.4f} | {_percent(row['gap'])} | {_percent(row['attack_error_on_clean'])} |"
            )
    table = "\n".join(lines)
    s = r["settings"]
    return (
        f"## Certification\n\nMNIST 1 against 7, {s['limit']} a class, keep {s['keep']}, radius {s['radius']}, {r['date']}. "
        "`upper_bound` with data centroids is over the splits of the poison between the classes that are tried.\n\n"
        "| feasible set | centroids | integrity | poison | upper bound | attack | gap | error of the attacked classifier on clean samples |\n"
        f"|{'---|' * 8}\n{table}\n"
    )


def _search(r: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {x['labels']} | {x['race']['seconds']:.1f} | {x['full']['seconds']:.1f}{'' if x['full']['measured'] else ' (extrapolated)'} |"
        for x in r["labels"]
    )
    side = r["side_by_side"]["summary"]
    return (
        f"## Cost of the search\n\n`{r['command']}`, {r['date']}, {r['device']}, CPU seconds. GPU: {r['gpu']}.\n\n"
        f"- Beside sequential Neural Cleanse with the paper's settings, on the shipped infected model (labels "
        f"{', '.join(map(str, side['labels_of_sequential']))}): {side['times_faster_than_sequential']:.1f} times less.\n"
        f"- Over the bare forward and backward passes: {side['overhead_over_limit']:+.0%}; over the same passes in our memory "
        f"layout: {side['overhead_over_limit_as_laid_out']:+.0%}.\n"
        f"- Beside adversarial-robustness-toolbox: {r['art']['outcome']}.\n\n"
        f"| labels | race | full |\n|---|---|---|\n{rows}\n"
    )


def _large(r: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {s['step']} | {s['seconds']:.1f} | {s['peak_gib']:.1f} | {s['peak_of_children_gib']:.1f} |"
        for s in r["steps"]
    )
    return (
        f"## A model beyond 2 GiB\n\n`benchmarks/large_model.py`, {r['date']}: weights of {r['weights_gib']} GiB in a data file beside a "
        f"message of {r['message_bytes']} bytes. Peak memory is that of the process so far, and of the children that opened the file.\n\n"
        f"| step | seconds | peak GiB | of children |\n|---|---|---|---|\n{rows}\n"
    )


def _preset_times(r: dict[str, Any]) -> str:
    whole = r["presets"][-1]["cpu_seconds"]
    rows = "\n".join(
        f"| {p['preset']} | {p['cpu_seconds']:.0f} | {p['cpu_seconds'] / whole:.3f} | {p['gradient_steps']} | {p['verdict']} {p['targets']} |"
        for p in r["presets"]
    )
    return (
        f"## What the presets take\n\n`benchmarks/preset_times.py`, {r['date']}: {r['model']}, {r['samples']} samples, reference "
        f"networks trained anew in each scan.\n\n| preset | CPU seconds | of thorough's | gradient steps on the model | verdict |\n"
        f"|---|---|---|---|---|\n{rows}\n"
    )


def _side_by_side(r: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {x['model']} | {x['work']} | {x['one thread']:.1f} | {x['one after the other']:.1f} | {x['side by side']:.1f} | {x['ratio']:.2f} | "
        f"{'yes' if x['the same'] else 'no'} |"
        for x in r["rows"]
    )
    return (
        f"## Searches side by side on a CPU\n\n`benchmarks/side_by_side.py`, {r['date']}, {r['machine']['processor']}, "
        f"{r['machine']['threads']} threads, {r['steps']} steps a search. Each way in turn, the least time of each.\n\n"
        "| model | work | one thread, s | one after the other on all threads, s | side by side, s | ratio | same bits as one thread |\n"
        f"|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _many_classes(r: dict[str, Any]) -> str:
    lines = [
        "## A thousand classes, 224 to 260 pixels, one picture a class\n",
        f"`python benchmarks/many_classes.py --pictures ...` on {r['hardware']}, torch {r['versions']['torch']}. The smallest mask is "
        "the one that leads the search's pictures to one class, as a share of the picture; beside it, how many unseen ones it leads "
        "there, and how much larger the mask to the next class is. The clean networks are published ones (EfficientNet-Lite), given as "
        "live torch modules, whose graph is not looked at; as a file Lite0's is, and names nothing ([detectors.md](detectors.md)).\n",
        "| model | preset | verdict | classes named | p | smallest mask | to class | of unseen pictures | next class | passes | seconds | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for m in r["rows"]:
        masks = sorted(
            (s["size"], s["class"], s["unseen"])
            for s in m["searches"]
            if s["family"] == "l1" and s["class"] is not None
        )
        size, k, unseen = masks[0]
        others = [s for s, other, _ in masks if other != k]
        following = f"{others[0] / size:.1f} times" if others else "none reached"
        lines.append(
            f"| {m['model']} | {m['preset']} | {m['verdict']} | {_classes(m['targets'])} | {m['p']:.2g} | {size / m['pixels']:.2%} | {k} | "
            f"{_percent(unseen)} | {following} | {m['passes']:,} | {m['seconds searched']:.0f} | "
            f"{m['peak GiB']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _graph_logic(r: dict[str, Any]) -> str:
    """Payloads by carrier and by kind, ordinary files by form, and the time that they took."""
    rows = r["rows"].values()
    payloads = [m for m in rows if m["part"] == "payloads" and m.get("works")]
    unfit = [m for m in rows if m["part"] == "payloads" and not m.get("works")]
    files = [m for m in rows if m["part"] == "ordinary" and "verdict" in m]
    refused = [m for m in rows if m["part"] == "ordinary" and "verdict" not in m]

    def table(heading: str, key: str) -> str:
        lines = [f"| {heading} | payloads | found | with a working trigger |", "|---|---|---|---|"]
        for name in dict.fromkeys(m[key] for m in payloads):
            own = [m for m in payloads if m[key] == name]
            counts = (len(own), sum(m["found"] for m in own), sum(m["trigger"] for m in own))
            lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
        return "\n".join(lines)

    forms = ["| form | files | kept from a verdict | alarms |", "|---|---|---|---|"]
    for form in dict.fromkeys(m["form"] for m in files):
        own = [m for m in files if m["form"] == form]
        forms.append(
            f"| {form} | {len(own)} | {sum(bool(m['reasons']) for m in own)} | {sum(bool(m['targets']) for m in own)} |"
        )
    kept = [
        f"* {name}: {'; '.join(m['reasons'])}"
        for name, m in r["rows"].items()
        if m["part"] == "ordinary" and m.get("reasons")
    ]
    sizes = ["| bytes | files | median seconds | slowest |", "|---|---|---|---|"]
    bounds = (0, 1 << 20, 10 << 20, 50 << 20, 1 << 40)
    for least, most in itertools.pairwise(bounds):
        seconds = sorted(m["seconds"] for m in files if least <= m["bytes"] < most)
        if seconds:
            name = f"{least >> 20} to {most >> 20} MiB" if most < 1 << 40 else f"{least >> 20} MiB and more"
            sizes.append(f"| {name} | {len(seconds)} | {statistics.median(seconds):.1f} | {seconds[-1]:.1f} |")
    found, woken = sum(m["found"] for m in payloads), sum(m["trigger"] for m in payloads)
    of_a_batch = sum(m["kind"] in ("by_the_size", "by_the_seventeenth") for m in payloads)
    return (
        f"## Logic in the graph\n\n`benchmarks/graph_logic.py`, {r['date']}, code {r['code']}, seed {r['seed']}: {r['processor']}, one thread; torch "
        f"{r['torch']}, onnx {r['onnx']}, onnxruntime {r['onnxruntime']}. Detector graph-logic alone, with up to 1,000 clean images, then the judge. "
        f"Of {len(payloads)} payloads ({len({m['kind'] for m in payloads})} kinds, {len({m['carrier'] for m in payloads})} trained carriers) "
        f"{found} ({found / max(1, len(payloads)):.1%}) are found, {woken} ({woken / max(1, len(payloads)):.1%}) with a trigger that turns 90 % of "
        f"unseen images in onnxruntime ({of_a_batch} hang on the batch, where no picture is a trigger); {len(unfit)} more do not do "
        f"on their carrier what they are made for (or cannot be put on it) and are not counted. "
        f"Of {len(files)} ordinary files {len(kept)} are kept from a verdict and {sum(bool(m['targets']) for m in files)} raise an alarm; "
        f"{len(refused)} could not be made or are refused before (no classifier, an operator that is not supported). Constants were read from "
        f"other models (benchmarks/graph_tuning.py).\n\n{table('carrier', 'carrier')}\n\n{table('payload', 'kind')}\n\n"
        + "\n".join(forms)
        + ("\n\nKept, and why:\n\n" + "\n".join(kept) if kept else "")
        + "\n\nCPU seconds of ordinary files:\n\n"
        + "\n".join(sizes)
        + "\n"
    )


def _quantised_twins(r: dict[str, Any]) -> str:
    """One row a model, one column a form; and how much of what is found in float is found in each."""
    forms = list(dict.fromkeys(m["form"] for m in r["models"]))

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        found = f" {row['found']}" if row["found"] else ""
        return f"{row['verdict']}{found}, p {row['p_value']:.2g}"

    lines = ["| model | true | " + " | ".join(forms) + " |", "|---|---|" + "---|" * len(forms)]
    for name in dict.fromkeys(m["name"] for m in r["models"]):
        own = {m["form"]: m for m in r["models"] if m["name"] == name}
        true = next(iter(own.values()))["targets"] or "clean"
        lines.append(f"| {name} | {true} | " + " | ".join(cell(own.get(f)) for f in forms) + " |")
    kept = "; ".join(
        f"{form}: {k['found_of_those']} of {k['found_in_float']}, and {k['false_alarms']} alarms on {k['clean']} clean files"
        for form, k in r["kept"].items()
    )
    whole = r["float"]
    again = ", ".join(m["name"] for m in r["models"] if "code" in m)
    later = f" Run again when the comparison of integer files with onnxruntime was mended: {again}." if again else ""
    return (
        f"## Integer files\n\n`benchmarks/quantised_twins.py --preset {r['preset']} --samples {r['samples']}`, {r['date']}, code {r['code']}, seed "
        f"{r['seed']}: {r['processor']}. In float {whole['found']} of {whole['infected']} infected models are found with the right class, and "
        f"{whole['false_alarms']} of {whole['clean']} clean ones raise an alarm. Of those that are found in float, what is found on the same "
        f"model in eight bits: {kept}.{later}\n\n" + "\n".join(lines) + "\n"
    )


def _gpu(r: dict[str, Any]) -> str:
    """The table that benchmarks/gpu.py printed, from its file."""

    def cells(row: dict[str, Any]) -> list[str]:
        unit = f" {row['unit']}" if row["unit"] else ""
        goal = "-" if row["goal"] is None else f"{row['goal']:g}{unit}"
        value = row["outcome"] if row["value"] is None else f"{row['value']:.3g}{unit}"
        if row["value"] is not None and row["outcome"] != "measured":
            value += f" ({row['outcome']})"
        met = "-" if row["goal"] is None or row["outcome"] == "skipped" else "no"
        met = "yes" if row["met"] and row["outcome"] == "measured" else met
        peak = f"{row['peak_mib'] / 1024:.1f} GiB" if row.get("peak_mib") else "-"
        return [row["what"], row["before"] or "-", goal, value, met, peak, row["detail"].replace("|", "/")]

    rows = "\n".join("| " + " | ".join(cells(row)) + " |" for row in r["rows"])
    cards = "; ".join(r["hardware"]["cards"]) or "no card"
    cut = "" if r.get("ended") else " It was cut off."
    cut += " With --tiny: the figures mean nothing." if r["tiny"] else ""
    return (
        f"## On a GPU\n\n`benchmarks/gpu.py`, {r['date']}: {cards}; {r['hardware']['processor']}, {r['hardware']['threads']} threads; torch "
        f"{r['versions'].get('torch')}, commit {r['bundle_commit']}, seed {r['seed']}, {r['seconds']:.0f} s in all.{cut} What the rows are: "
        f"[gpu.md](gpu.md).\n\n| what | before | goal | measured | met | memory | notes |\n|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _kills(r: dict[str, Any]) -> str:
    said = "; ".join(r["failures"]) or "every report was that of the undisturbed scan, and no unit was searched twice"
    options = (" --tiny" if r.get("tiny") else "") + (" --forked" if r.get("killed") == "forks" else "")
    return (
        f"## Scans that are killed\n\n`benchmarks/kill_resume.py{options} --moments {r['kills']}`, {r['date']}, preset {r['preset']}: "
        f"{r['scans']} scans killed (SIGKILL) {r['kills']} times in all at random moments, and resumed: {said}.\n"
    )


def _signals(r: dict[str, Any]) -> str:
    rows = "".join(
        f"| {row['command']} | {row['seconds']:.1f} s | {row['sent']} | {row['interrupted']} | {'; '.join(row['problems']) or 'none'} |\n"
        for row in r["rows"]
    )
    return (
        f"## Signals at any moment\n\n`benchmarks/signals.py`, {r['date']}: {r['sent']} signals (SIGINT, SIGTERM, SIGHUP) at random moments of every "
        f"command, {r['interrupted']} of them before its end: {r['problems']} problems. Each has to end in one line with status 4 "
        "(`view` with 0 after Ctrl-C), and to leave no temporary file, no unfinished output and no process.\n\n"
        f"| command | takes | signals | before its end | problems |\n|---|---|---|---|---|\n{rows}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _classes(indices: list[int]) -> str:
    return "-" if not indices else "all" if len(indices) > 9 else ", ".join(map(str, indices))


def _each(m: dict[str, Any]) -> str:
    by_detector = m.get("by_detector", {})
    return "; ".join(f"{n} {d['class']} ({d['p_value']:.1g})" for n, d in by_detector.items() if "class" in d) or m.get(
        "error", ""
    )


if __name__ == "__main__":
    (Path(__file__).parent / "results.md").write_text(page())
