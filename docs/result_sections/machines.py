"""Time, memory, kills and signals; a thousand classes; a GPU."""

from __future__ import annotations

from typing import Any

from result_sections.words import classes, percent


def search(r: dict[str, Any]) -> str:
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


def large(r: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {s['step']} | {s['seconds']:.1f} | {s['peak_gib']:.1f} | {s['peak_of_children_gib']:.1f} |"
        for s in r["steps"]
    )
    return (
        f"## A model beyond 2 GiB\n\n`benchmarks/large_model.py`, {r['date']}: weights of {r['weights_gib']} GiB in a data file beside a "
        f"message of {r['message_bytes']} bytes. Peak memory is that of the process so far, and of the children that opened the file.\n\n"
        f"| step | seconds | peak GiB | of children |\n|---|---|---|---|\n{rows}\n"
    )


def preset_times(r: dict[str, Any]) -> str:
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


def time_left(r: dict[str, Any]) -> str:
    shares = [s["share"] for s in r["scans"][0]["said"]]
    rows = "\n".join(
        f"| {x['model']} | {x['classes']} | {x['preset']} | {x['seconds']:.0f} | "
        + " | ".join(f"{s['whole'] - 1:+.0%}" for s in x["said"])
        + " |"
        for x in r["scans"]
    )
    late = [abs(s["whole"] - 1) for x in r["scans"] for s in x["said"] if s["share"] >= 0.25]
    return (
        f"## Time left\n\n`benchmarks/time_left.py`, {r['date']}, {r['threads']} thread(s), load average of the machine {r['load']}: what a scan "
        "says on its way, as the error of the whole scan's time (passed and left) that follows from it. From a quarter of the time on it "
        f"is off by at most {max(late):.0%}, and by {sum(late) / len(late):.0%} in the mean.\n\n"
        f"| model | classes | preset | seconds | {' | '.join(f'after {s:.0%}' for s in shares)} |\n"
        f"|---|---|---|---|{'---|' * len(shares)}\n{rows}\n"
    )


def side_by_side(r: dict[str, Any]) -> str:
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


def many_classes(r: dict[str, Any]) -> str:
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
            f"| {m['model']} | {m['preset']} | {m['verdict']} | {classes(m['targets'])} | {m['p']:.2g} | {size / m['pixels']:.2%} | {k} | "
            f"{percent(unseen)} | {following} | {m['passes']:,} | {m['seconds searched']:.0f} | "
            f"{m['peak GiB']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def gpu(r: dict[str, Any]) -> str:
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


def kills(r: dict[str, Any]) -> str:
    said = "; ".join(r["failures"]) or "every report was that of the undisturbed scan, and no unit was searched twice"
    options = (" --tiny" if r.get("tiny") else "") + (" --forked" if r.get("killed") == "forks" else "")
    return (
        f"## Scans that are killed\n\n`benchmarks/kill_resume.py{options} --moments {r['kills']}`, {r['date']}, preset {r['preset']}: "
        f"{r['scans']} scans killed (SIGKILL) {r['kills']} times in all at random moments, and resumed: {said}.\n"
    )


def signals(r: dict[str, Any]) -> str:
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
