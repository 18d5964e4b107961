"""What each job of the GPU benchmark starts, and which rows it fills with what came of it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu_plan import SHARING
from gpu_supervisor import Failed, Supervisor, report_of
from gpu_words import GIB, budget_in_words, in_words, told_by, verdict_in_words

SHIPPED = ("fashion_mnist_badnets", "fashion_mnist_clean")
DETECTORS = {"nc": "neural-cleanse", "re": "reverse-engineering", "cepa": "cepa", "margin": "max-margin"}


def prepare(bench: Supervisor) -> None:
    """Training, and the shipped pair on the CPU beside it."""
    beside = [_shipped_scan(bench, model, "cpu") for model in SHIPPED] if "shipped" in bench.asked else []
    bench.on_cpu = bench.jobs_script("prepare", *beside)[1:]


def steps(bench: Supervisor) -> None:
    """Bare passes and search steps."""
    bench.jobs_script("steps")


def opens(bench: Supervisor) -> None:
    """Opening networks of many architectures."""
    bench.jobs_script("opens")


def _scanned(bench: Supervisor, row: str, command: Sequence[str], trained: str) -> tuple[dict[str, Any], float]:
    """One scan's report and peak memory in MiB; its row filled with the command's wall time."""
    (ran,), peak = bench.run([command])
    report = report_of(ran)
    planted = next((r["target"] for r in bench.rows if r["name"] == trained), None)
    bench.fill(row, ran.seconds, "measured", verdict_in_words(report, planted), **told_by(report, peak))
    return report, peak


def quick(bench: Supervisor) -> None:
    """A quick scan."""
    # --tiny: the one whole preset, reference networks and all
    more = ("--detector", "max-margin", "--detector", "neural-cleanse") if bench.tiny else ()
    _scanned(bench, "quick", bench.scan("wide.onnx", "wide.npz", "quick", "runs/quick", *more), "train_wide")


def again(bench: Supervisor) -> None:
    """The same command again."""
    more = ("--detector", "max-margin", "--detector", "neural-cleanse") if bench.tiny else ()
    _scanned(bench, "again", bench.scan("wide.onnx", "wide.npz", "quick", "runs/quick", *more), "train_wide")


def standard(bench: Supervisor) -> None:
    """A standard scan, and what each detector took of it."""
    more = tuple(a for d in ("max-margin", "cepa") for a in ("--detector", d)) if bench.tiny else ()
    report, _ = _scanned(
        bench, "standard", bench.scan("wide.onnx", "wide.npz", "standard", "runs/standard", *more), "train_wide"
    )
    for short, detector in DETECTORS.items():
        found = next((d for d in report["detectors"] if d["name"] == detector), None)
        if found is None or found["status"] != "ran":
            why = "not in the report" if found is None else found["reason"]
            bench.fill(f"{short}_inside", None, "skipped", why)
        else:
            bench.fill(f"{short}_inside", found["seconds"], "measured", budget_in_words(found))


def thorough(bench: Supervisor) -> None:
    """A thorough scan."""
    _scanned(bench, "thorough", bench.scan("wide.onnx", "wide.npz", "thorough", "runs/thorough"), "train_wide")


def signs(bench: Supervisor) -> None:
    """A standard scan of 43 classes."""
    _scanned(bench, "signs", bench.scan("signs.onnx", "signs.npz", "standard", "runs/signs"), "train_signs")


def alone(bench: Supervisor) -> None:
    """A scan with one detector, which the job is named after."""
    assert bench.job is not None
    name = bench.job.name
    detector = "max-margin" if bench.tiny else DETECTORS[name.removeprefix("alone_")]
    folder = f"runs/{name}"
    (ran,), peak = bench.run([bench.scan("wide.onnx", "wide.npz", "standard", folder, "--detector", detector)])
    report = report_of(ran)
    found = report["detectors"][0]
    if found["status"] != "ran":
        raise Failed(found["reason"])
    words = f"{budget_in_words(found)}; whole command {ran.seconds:.1f} s"
    bench.fill(name, found["seconds"], "measured", words, **told_by(report, peak))


def shipped(bench: Supervisor) -> None:
    """The shipped pair, there and on the CPU."""
    differ, words, pairs = 0, [], []
    for model, on_cpu in zip(SHIPPED, bench.on_cpu, strict=True):
        (ran,), _ = bench.run([_shipped_scan(bench, model, bench.device)])
        there, here = report_of(ran), report_of(on_cpu)
        said = [(r["verdict"], r["targets"]) for r in (there, here)]
        differ += said[0] != said[1]
        words.append(
            f"{model}: {in_words(*said[0])} in {ran.seconds:.1f} s, CPU: {in_words(*said[1])} in {on_cpu.seconds:.1f} s"
        )
        kept = ("verdict", "targets", "p_value", "digest")
        pairs.append({"model": model, "device": {k: there[k] for k in kept}, "cpu": {k: here[k] for k in kept}})
    bench.fill("shipped", differ, "measured", "; ".join(words), verdicts=pairs)


def _shipped_scan(bench: Supervisor, model: str, device: str) -> list[str]:
    """A scan of a shipped model, on the shipped images."""
    code = "import onnxspect.models.zoo as zoo, sys; print(*map(zoo.path, sys.argv[1:]), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code, model, "fashion_mnist_test"],
        capture_output=True,
        text=True,
        cwd=bench.work,
        env=bench.environment,
        check=False,
    )
    if done.returncode:
        raise Failed(f"no shipped models: {(done.stderr.splitlines() or ['?'])[-1]}")
    file, data = done.stdout.splitlines()[-2:]
    # the device asked for may be the CPU too (--tiny): two folders all the same
    folder = f"runs/{model}-{device}-{len(bench.done)}"
    return bench.scan(file, data, "quick", folder, device=device)


def patch(bench: Supervisor) -> None:
    """A patch by unlearning."""
    options = ["--run", "runs/standard", "--data", "wide.npz", "-o", "patched.onnx", "--method", "unlearn"]
    if bench.tiny:  # max-margin convicts nobody
        options += ["--target", "1", "--rounds", "1", "--max-success", "1", "--max-accuracy-lost", "1"]
    (ran,), peak = bench.run([bench.tool("patch", "wide.onnx", *options, "--device", bench.device)])
    if ran.status == 3:
        bench.fill("patch", ran.seconds, "goals missed", ran.complaint)
    elif ran.status != 0:
        raise Failed(ran.complaint)
    else:
        bench.fill("patch", ran.seconds, "measured", "patched and proven", **({"peak_mib": peak} if peak else {}))


def lite0(bench: Supervisor) -> None:
    """A quick scan of 1,000 classes, and its memory."""
    folder = bench.bundle / "imagenet"
    if not folder.is_dir():
        for name in ("lite0", "lite0_memory"):
            bench.fill(name, None, "skipped", "not in the bundle (make gpu-bundle IMAGENET=DIR)")
        return
    with zipfile.ZipFile(folder / "lite0.zip") as archive:
        model = archive.extract(archive.namelist()[0], bench.work)
    with zipfile.ZipFile(folder / "images.zip") as archive:
        archive.extractall(bench.work / "imagenet")
    if bench.tiny:  # what is tried is the limit
        bench.end_within(6)
    (ran,), peak = bench.run([bench.scan(model, str(bench.work / "imagenet"), "quick", "runs/lite0")])
    most = f"the most memory until then: {peak / GIB:.1f} GiB" if peak else "memory of the card not known"
    if ran.status is None:
        bench.fill("lite0", None, "timed out", f"{ran.complaint}; {most}", peak_mib=peak)
    else:
        report = report_of(ran)
        bench.fill("lite0", ran.seconds, "measured", verdict_in_words(report, 291), **told_by(report, peak))
    if peak:
        bench.fill("lite0_memory", peak / GIB)
    else:
        bench.fill("lite0_memory", None, "skipped", most)


def sharing(bench: Supervisor) -> None:
    """Several scans at once."""
    commands = [bench.scan("signs.onnx", "signs.npz", "standard", f"runs/sharing-{i}") for i in range(SHARING)]
    ran, peak = bench.run(commands)
    ended = [r for r in ran if r.status in (0, 1, 3)]
    others = sorted({r.complaint for r in ran if r not in ended})
    more = {"peak_mib": peak} if peak else {}
    bench.fill("sharing", SHARING - len(ended), "measured", "; ".join(others)[:400], **more)
    if others:
        bench.fill("sharing_seconds", None, "failed", "not all ended")
    else:
        bench.fill("sharing_seconds", max(r.seconds for r in ran))


#: Job -> what it starts.
COMMANDS: Mapping[str, Callable[[Supervisor], None]] = {
    "prepare": prepare,
    "steps": steps,
    "opens": opens,
    "quick": quick,
    "again": again,
    "standard": standard,
    "thorough": thorough,
    "signs": signs,
    "shipped": shipped,
    "patch": patch,
    "lite0": lite0,
    "sharing": sharing,
    **{f"alone_{short}": alone for short in DETECTORS},
}
