"""What patches, cleansing and certification come to."""

from __future__ import annotations

from typing import Any

from result_sections.words import classes, percent


def patches_with_training_set(r: dict[str, Any]) -> str:
    return patches(r, "Patches with the training set at hand")


def patches_of_judging_half(r: dict[str, Any]) -> str:
    return patches(r, "Patches, infected models of the judging half")


def patches_of_zoo(r: dict[str, Any]) -> str:
    return patches(r, "Patches of the zoo, every method, by earlier code")


def patches(r: dict[str, Any], heading: str = "Patches") -> str:
    rows = "\n".join(
        f"| {m['model']} | {m['method']} | {m.get('kept') or 'nothing'} | {percent(m.get('asr_before'))} "
        f"| {percent(m.get('asr_after'))} | {percent(m.get('unstamped_after'))} | {percent(m.get('accuracy_before'))} "
        f"| {percent(m.get('accuracy_after'))} | {m['images']} | {m.get('cpu_seconds', '-')} |"
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
                f"{method}, on {caught['models']} attacks by a patch of pixels: {percent(caught['false_positives_median'])} of "
                f"clean images rejected (median), {percent(caught['false_negatives_median'])} of stamped ones let through "
                f"(median; worst {percent(caught['false_negatives_worst'])}, images counted that the trigger does not lead; of "
                f"those that it leads {percent(caught['led_and_let_through_median'])}, worst "
                f"{percent(caught['led_and_let_through_worst'])})."
            )
        elif "written" in s:
            w = s["written"]
            kept = [m["kept"] for m in r["rows"] if m["method"] == method and m["written"]]
            by = ", ".join(f"{kept.count(k)} by {k}" for k in dict.fromkeys(sorted(kept, key=kept.count, reverse=True)))
            lines.append(
                f"{method}, over the {s['files']} files it wrote of {s['models']} ({by}): ASR {percent(w['asr_median'])} in the median, "
                f"{percent(w['asr_worst'])} at worst; accuracy lost {percent(w['accuracy_lost_median'])} in the median, "
                f"{percent(w['accuracy_lost_worst'])} at worst."
            )
    if r.get("note"):
        lines.append(r["note"])
    return "\n".join(f"- {line}" for line in lines)


def cleansing(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    head = "| model | pattern | sources | " + " | ".join(f"{m} TPR / FPR" for m in methods) + " | retrained ASR |"
    rows = "\n".join(
        f"| {m['name']} | {m['pattern']} | {m['sources']} | "
        + " | ".join(f"{percent(m['methods'][x]['tpr'])} / {percent(m['methods'][x]['fpr'])}" for x in methods)
        + f" | {percent((m.get('retrained') or {}).get('asr'))} |"
        for m in r["models"]
    )
    mean = " | ".join(f"{percent(v['tpr'])} / {percent(v['fpr'])}" for v in r["mean"].values())
    return (
        f"## Cleansing of training sets\n\n`benchmarks/cleansing.py`, {r['date']}; the target class is given to all methods. "
        f"FPR is of clean samples labelled as the target.\n\n{head}\n|{'---|' * (len(methods) + 4)}\n{rows}\n| **mean** | | | {mean} | |\n"
    )


def patterns(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    short = {"spectral-signatures": "SS", "activation-clustering": "AC", "cluster-impurity": "CI"}
    models = sorted(r["models"], key=lambda m: (m["pattern"], m["sources"] == "all", m["sources"]))
    rows = "\n".join(
        f"| {m['pattern']} | {9 if m['sources'] == 'all' else m['sources']} | {percent(m['asr'])} / {percent(m['clean_accuracy'])} | "
        + " | ".join(f"{percent(m['methods'][x]['tpr'])} / {percent(m['methods'][x]['fpr'])}" for x in methods)
        + f" | {percent(m['retrained']['asr'])} / {percent(m['retrained']['clean_accuracy'])} |"
        for m in models
    )
    mean = " | ".join(f"{percent(v['tpr'])} / {percent(v['fpr'])}" for v in r["mean"].values())
    again = [m["retrained"] for m in models]
    change = [m["clean_accuracy"] - m["twin_accuracy"] for m in again]
    head = " | ".join(f"{short.get(m, 'RE')} TPR / FPR" for m in methods)
    return (
        f"## Cleansing: the patterns A-F\n\n`benchmarks/cleansing.py --build DIR --attack A1 ... --retrain`, {r['date']}: "
        f"LeNet-5 on {models[0]['training_images']} images of Fashion-MNIST, one network a row; the target class is given to "
        "all methods. The network trained without poison has an accuracy of "
        f"{percent(again[0]['twin_accuracy'])}; trained again on what RE keeps, it differs from that by "
        f"{100 * sum(change) / len(change):+.2f} points on average ({100 * min(change):+.1f} to {100 * max(change):+.1f}), "
        f"and ASR is at most {percent(max(m['asr'] for m in again))}.\n\n"
        f"| pattern | sources | ASR / accuracy | {head} | trained again: ASR / accuracy |\n|{'---|' * (len(methods) + 4)}\n"
        f"{rows}\n| **mean** | | | {mean} | |\n"
    )


def by_scan(r: dict[str, Any]) -> str:
    methods = list(r["mean"])
    rows = "\n".join(
        f"| {m['name']} | {m['pattern']} | {classes(m['found'])} | {classes(m['target'])} "
        f"| {percent(rates['tpr'])} / {percent(rates['fpr'])} "
        f"| {percent(m['asr'])} | {percent(m['retrained']['asr'])} "
        f"| {percent(m['clean_accuracy'])} | {percent(m['retrained']['clean_accuracy'])} |"
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


def certification(r: dict[str, Any]) -> str:
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
                + f" | {row['attack_loss']:.4f} | {percent(row['gap'])} | {percent(row['attack_error_on_clean'])} |"
            )
    table = "\n".join(lines)
    s = r["settings"]
    return (
        f"## Certification\n\nMNIST 1 against 7, {s['limit']} a class, keep {s['keep']}, radius {s['radius']}, {r['date']}. "
        "`upper_bound` with data centroids is over the splits of the poison between the classes that are tried.\n\n"
        "| feasible set | centroids | integrity | poison | upper bound | attack | gap | error of the attacked classifier on clean samples |\n"
        f"|{'---|' * 8}\n{table}\n"
    )
