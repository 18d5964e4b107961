"""What the GPU benchmark measures: its rows with their goals, the jobs that fill them, and whether a job still fits into the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Seconds of the whole that are kept for the end: the table, the last write.
RESERVE = 3.0
#: How many scans share the card in the job `sharing`.
SHARING = 6


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: its key.
        what: what is measured, in words.
        unit: of value and goal.
        goal: at most so much; None where there is no goal.
        before: what was measured before any work on GPUs, on one H100 with torch 2.11+cu130.
    """

    name: str
    what: str
    unit: str = "s"
    goal: float | None = None
    before: str = ""


@dataclass(frozen=True)
class Job:
    """One piece of work that fills rows.

    Attributes:
        name: what --only takes.
        rows: that it fills.
        limit: seconds after which it is killed.
        least: seconds that must be left for it to be started.
        needs: jobs that must have left what it works on.
    """

    name: str
    rows: tuple[Row, ...]
    limit: float
    least: float
    needs: tuple[str, ...] = ()


WIDE, SIGNS = "wide ResNet-18, CIFAR-10", "43 classes, GTSRB"

#: All jobs, the most important first.
JOBS = (
    Job(
        "prepare",
        (
            Row("train_wide", f"training: {WIDE}, with a backdoor"),
            Row("train_signs", f"training: {SIGNS}, with a backdoor"),
        ),
        limit=170,
        least=60,
    ),
    Job(
        "quick",
        (Row("quick", f"scan --preset quick, {WIDE}", goal=6, before="20.5 s; refused with TF32"),),
        90,
        6,
        ("prepare",),
    ),
    Job(
        "standard",
        (
            Row("standard", f"scan --preset standard, {WIDE}", goal=15),
            Row("nc_inside", "of it neural-cleanse: 10 labels and pairs", goal=3, before="13.6 s"),
            Row("re_inside", "of it reverse-engineering: 90 pairs", goal=3, before="6.7 s"),
            Row("cepa_inside", "of it cepa", before="1.2 s"),
            Row("margin_inside", "of it max-margin", before="0.7 s"),
        ),
        120,
        15,
        ("prepare",),
    ),
    Job(
        "steps",
        (
            Row("pass_fp32", "forward and back to 480 images, IEEE float32", "ms", before="50.4 ms"),
            Row("pass_tf32", "the same, TF32", "ms"),
            Row("pass_bf16", "the same, bf16 autocast, channels-last", "ms", before="8.7 ms"),
            Row("pass_best", "the same, bf16, channels-last, BatchNorm folded", "ms"),
            Row("pass_graph", "the same as a CUDA graph", "ms"),
            Row("step", "one search step, 10 units x 48 images", "ms", before="60.6 ms"),
            Row("overhead", "search step / fastest bare pass", "", goal=1.15, before="7.0"),
            Row("launches", "calls of the host that launch work, a step", "", before="334"),
            Row("kernels", "kernels on the chip, a step", ""),
            Row("busy", "of a step's time the chip is not busy", "%", before="2"),
        ),
        100,
        25,
        ("prepare",),
    ),
    Job(
        "shipped",
        (Row("shipped", "shipped pair: verdicts or targets that differ from the CPU's", "of 2", goal=0),),
        60,
        8,
        ("prepare",),
    ),
    Job("patch", (Row("patch", f"patch --method unlearn, {WIDE}", goal=10),), 90, 10, ("standard",)),
    Job(
        "signs",
        (Row("signs", f"scan --preset standard, {SIGNS}", goal=20, before="1 of 6 sharing the card ended in 170 s"),),
        120,
        20,
        ("prepare",),
    ),
    Job(
        "lite0",
        (
            Row("lite0", "scan --preset quick, EfficientNet-Lite0, 1,000 classes", goal=60, before="out of memory"),
            Row("lite0_memory", "of it the most memory on the card", "GiB", goal=16, before="> 79 GiB"),
        ),
        100,
        30,
    ),
    Job("thorough", (Row("thorough", f"scan --preset thorough, {WIDE}", goal=45),), 130, 40, ("prepare",)),
    Job("again", (Row("again", "the quick scan's command again, its run folder kept"),), 30, 5, ("quick",)),
    Job(
        "opens",
        (Row("refused", "networks that are refused when opened", "", goal=0, before="22 of 22"),),
        90,
        30,
    ),
    *(
        Job(
            f"alone_{short}",
            (Row(f"alone_{short}", f"--detector {detector} alone, standard: its searches", goal=goal, before=before),),
            60,
            8,
            ("prepare",),
        )
        for short, detector, goal, before in (
            ("nc", "neural-cleanse", 3, "13.6 s"),
            ("re", "reverse-engineering", 3, "6.7 s"),
            ("cepa", "cepa", None, "1.2 s"),
            ("margin", "max-margin", None, "0.7 s"),
        )
    ),
    Job(
        "sharing",
        (
            Row(
                "sharing",
                f"{SHARING} scans at once, standard, {SIGNS}: not ended",
                f"of {SHARING}",
                goal=0,
                before="5 of 6",
            ),
            Row("sharing_seconds", "the same: until the last one ended"),
        ),
        170,
        60,
        ("prepare",),
    ),
)


def chosen(only: str | None) -> list[Job]:
    """The jobs to run in order: all, or those named (comma-separated) with all that they need.

    Raises:
        ValueError: no such job.
    """
    if only is None:
        return list(JOBS)
    by_name = {j.name: j for j in JOBS}
    waiting, wanted = [n.strip() for n in only.split(",") if n.strip()], set()
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise ValueError(f"no job {name!r}; one of {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].needs
    return [j for j in JOBS if j.name in wanted]


def time_for(job: Job, left: float, done: Mapping[str, bool], patience: float = 1) -> tuple[float, str]:
    """(seconds it may take, "") or (0, why it is skipped).

    Args:
        job: the next one.
        left: seconds until everything must have ended.
        done: job -> whether it left what others need, of those that ran or were skipped.
        patience: the limits of jobs are multiplied by it.
    """
    missing = [n for n in job.needs if not done.get(n)]
    if missing:
        return 0, f"needs {', '.join(missing)}"
    may = min(job.limit * patience, left - RESERVE)
    if may < job.least:
        return 0, f"{max(left, 0):.0f} s left, it may need {job.least:.0f}"
    return may, ""
