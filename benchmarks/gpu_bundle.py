"""Lays into one folder what benchmarks/gpu.py needs on a CUDA machine without network: `make gpu-bundle`.

    python benchmarks/gpu_bundle.py --data-root DATA [--imagenet DIR] [--out bundle] [--only wheel] [--limit-mib 60]

The folder then holds

    gpu.py, gpu_*.py        the benchmark itself
    wheels/                 this repository's wheel, and what it needs beside torch, onnx, onnxruntime, numpy, scipy and scikit-learn
                            (CPython 3.12 on x86-64 Linux); those that are there already are not used
    data/cifar10.npz        10,000 training images (lossy WebP), 1,000 clean samples (lossless), 1,000 images to measure on (lossy)
    data/gtsrb.npz          the same of GTSRB's 43 classes: 5,160, 860 and 430
    imagenet/               with --imagenet: the 1,000-class EfficientNet-Lite0 and 1,000 images, one a class (lossy WebP, zipped)
    bundle.json             what is in it, and from which commit

The raw images would take 60 MiB alone. Training images may be lossy, since they only make a network to scan; those that are scanned with
are not, but for ImageNet's, which are JPEGs to begin with. The data sets state no licence: the folder is for a machine of yours, not
for publication, and git ignores it.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parent.parent
#: What the machine has: they and what they need in turn are left out.
THERE = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "scikit-learn")
#: The machine's Python, for requirements that depend on it.
MACHINE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
#: A pure wheel of it is a fifth of the compiled one.
PURE_WHEELS = ("fonttools",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
#: Data set -> (clean samples, images to measure on), a class.
SHARES = {"cifar10": (100, 100), "gtsrb": (20, 10)}
FILES = {"cifar10": "cifar10_subset.npz", "gtsrb": "gtsrb32_subset.npz"}
#: Quality of lossy images, and of ImageNet's.
LOSSY, LOSSY_LARGE = 90, 75
MIB = 2**20
#: The benchmark's own files.
SCRIPTS = (
    "gpu.py",
    "gpu_plan.py",
    "gpu_supervisor.py",
    "gpu_commands.py",
    "gpu_machine.py",
    "gpu_words.py",
    "gpu_jobs.py",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the folder; exit status 1 where it is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=os.environ.get("ONNXSPECT_DATA"), help="folder with the npz files"
    )
    parser.add_argument("--imagenet", type=Path, help="folder with lite0_infected.onnx and images/CLASS/*.jpg")
    parser.add_argument("--out", type=Path, default=ROOT / "bundle")
    parser.add_argument(
        "--only", choices=["wheel"], help="wheel: this repository's wheel and scripts anew, the rest as it is"
    )
    parser.add_argument("--limit-mib", type=float, default=60, help="exit status 1 where the folder is larger")
    asked = parser.parse_args(arguments)
    if asked.only is None and asked.data_root is None:
        parser.error("give --data-root or set ONNXSPECT_DATA")
    asked.out.mkdir(parents=True, exist_ok=True)
    own_wheel(asked.out)
    if asked.only is None:
        other_wheels(asked.out / "wheels")
        for name in SHARES:
            pack_small(name, asked.data_root / FILES[name], asked.out / "data" / f"{name}.npz")
        if asked.imagenet is not None:
            pack_imagenet(asked.imagenet, asked.out / "imagenet")
    sizes = {p.relative_to(asked.out).as_posix(): p.stat().st_size for p in sorted(asked.out.rglob("*")) if p.is_file()}
    sizes.pop("bundle.json", None)
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "bytes": sum(sizes.values()),
        "files": sizes,
    }
    (asked.out / "bundle.json").write_text(json.dumps(about, indent=1) + "\n")
    for file, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        print(f"{size / MIB:7.2f} MiB  {file}")
    mib = sum(sizes.values()) / MIB
    print(f"{mib:7.2f} MiB in all ({asked.out})")
    return int(mib > asked.limit_mib)


def commit() -> str:
    """The commit that the wheel was built from, "+" where files differ from it; "unknown" outside a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def pip(*arguments: str) -> None:
    """Run pip of this interpreter; its own words are the error."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, cwd=ROOT, check=True)


def own_wheel(out: Path) -> None:
    """This repository's wheel and the benchmark's scripts."""
    wheels = out / "wheels"
    wheels.mkdir(exist_ok=True)
    for old in wheels.glob("onnxspect-*.whl"):
        old.unlink()
    # setuptools copies into build/lib, and what an earlier build left there would be shipped too.
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels.resolve()), ".")
    for script in SCRIPTS:
        shutil.copyfile(ROOT / "benchmarks" / script, out / script)


def needed(package: str = "onnxspect", machine: Mapping[str, str] = MACHINE) -> set[str]:
    """What the installed package needs to run, with what that needs in turn, but for what is `THERE`: canonical names."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        for line in metadata.requires(waiting.pop()) or []:
            wanted = Requirement(line)
            name = canonicalize_name(wanted.name)
            asked = wanted.marker is None or wanted.marker.evaluate({**machine, "extra": ""})
            if asked and name not in found and name not in THERE:
                found.add(name)
                waiting.append(name)
    return found


def other_wheels(folder: Path) -> None:
    """The packages that may be missing there, in the versions that the tests ran with."""
    wheels = needed()
    for old in folder.glob("*.whl"):
        if not old.name.startswith("onnxspect-"):
            old.unlink()
    where = ["--dest", str(folder.resolve()), "--constraint", "constraints.txt", "--no-deps", "--only-binary=:all:"]
    target = ["--python-version", "3.12", "--implementation", "cp"]
    abis = [a for abi in ("cp312", "abi3", "none") for a in ("--abi", abi)]
    platforms = [a for platform in PLATFORMS for a in ("--platform", platform)]
    pip("download", *where, *target, *abis, *platforms, *sorted(wheels.difference(PURE_WHEELS)))
    pip("download", *where, *target, "--abi", "none", "--platform", "any", *sorted(wheels.intersection(PURE_WHEELS)))


def pack_small(name: str, source: Path, target: Path) -> None:
    """Training images, clean samples and images to measure on of a 32x32 data set, disjoint."""
    if not source.is_file():
        sys.exit(f"{source}: no such data set; give --data-root")
    with np.load(source, allow_pickle=False) as archive:
        train, train_labels, test, test_labels = (archive[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    rng = np.random.default_rng(0)
    clean, measure = [], []
    n_clean, n_measure = SHARES[name]
    for label in np.unique(test_labels):
        rows = rng.permutation(np.flatnonzero(test_labels == label))
        clean.append(rows[:n_clean])
        measure.append(rows[n_clean : n_clean + n_measure])
    parts = {
        "train": (train, train_labels, False),
        "clean": (test[np.concatenate(clean)], test_labels[np.concatenate(clean)], True),
        "measure": (test[np.concatenate(measure)], test_labels[np.concatenate(measure)], False),
    }
    arrays: dict[str, np.ndarray] = {"size": np.array(train.shape[1:])}
    for part, (images, labels, lossless) in parts.items():
        arrays[part] = np.frombuffer(as_webp(images, lossless), np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.int16)
    target.parent.mkdir(exist_ok=True)
    np.savez(target, **arrays)  # type: ignore[arg-type]


def as_webp(images: np.ndarray, lossless: bool) -> bytes:
    """Images uint8 ``(n, height, width, 3)`` in one picture, 128 in a row, as WebP; the last row is filled up with black."""
    n, height, width, channels = images.shape
    rows = -(-n // 128)
    padded = np.zeros((rows * 128, height, width, channels), np.uint8)
    padded[:n] = images
    picture = padded.reshape(rows, 128, height, width, channels).transpose(0, 2, 1, 3, 4)
    out = io.BytesIO()
    image = Image.fromarray(picture.reshape(rows * height, 128 * width, channels))
    image.save(out, "WEBP", lossless=lossless, quality=100 if lossless else LOSSY, method=6 if not lossless else 4)
    return out.getvalue()


def pack_imagenet(source: Path, target: Path) -> None:
    """The model as it is, deflated, and its images as WebP in one zip file of class folders."""
    target.mkdir(exist_ok=True)
    model = source / "lite0_infected.onnx"
    with zipfile.ZipFile(target / "lite0.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(model, model.name)
    with zipfile.ZipFile(target / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted((source / "images").glob("*/*.jpg")):
            out = io.BytesIO()
            with Image.open(file) as image:
                image.convert("RGB").save(out, "WEBP", quality=LOSSY_LARGE, method=4)
            archive.writestr(f"{file.parent.name}/{file.stem}.webp", out.getvalue())


if __name__ == "__main__":
    sys.exit(main())
