"""``python -m onnxspect.models.train_zoo``: build a zoo from a list of recipes.

Examples::

    python -m onnxspect.models.train_zoo --shipped --data-root DIR        # the pair in models/zoo, and its test images
    python -m onnxspect.models.train_zoo --list small --out zoo           # 2 CPU cores, under an hour
    python -m onnxspect.models.train_zoo --list my_recipes.toml --out zoo # your own list
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.models import zoo
from onnxspect.models.data import Dataset, data_root, load_dataset
from onnxspect.models.manifest import write_whole
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.recipes import read_recipes
from onnxspect.models.train_command import exit_status_of, observe
from onnxspect.models.zoo_build import build_zoo

_LISTS = {"small": "recipes_small.toml", "full": "recipes_full.toml"}
_SHIPPED_TEST_SEED = 2017  # the year of the data set


def shipped_test_images(dataset: Dataset, per_class: int, rng: np.random.Generator) -> bytes:
    """An npz with `per_class` test images of each class, drawn with `rng`: images, labels, classes."""
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(dataset.y_test == label))[:per_class] for label in range(len(dataset.classes))]
    )
    chosen = np.sort(chosen)
    stream = io.BytesIO()
    np.savez_compressed(
        stream, images=dataset.x_test[chosen], labels=dataset.y_test[chosen], classes=np.asarray(dataset.classes)
    )
    return stream.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 built, 1 a model misses its floor, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m onnxspect.models.train_zoo", description="Build a zoo of models.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shipped", action="store_true", help="the pair that the package ships, and its test images")
    what.add_argument("--list", metavar="NAME", help=f"{', '.join(_LISTS)} or a TOML file of recipes")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data sets (else ONNXSPECT_DATA)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the models go (default: zoo; shipped: the package)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="models built at once, a process each")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    here = Path(__file__).parent

    def train() -> dict[str, Any]:
        root = data_root(options.data_root)
        if not options.shipped:
            path = here / _LISTS[options.list] if options.list in _LISTS else Path(options.list)
            return build_zoo(read_recipes(path), root, options.out or Path("zoo"), observe, options.workers)
        out = options.out or Path(zoo.__file__).parent
        document = build_zoo(read_recipes(here / "recipes_shipped.toml"), root, out, observe)
        dataset = load_dataset("fashion_mnist", root)
        rng = keyed_generator(_SHIPPED_TEST_SEED, "shipped test images")
        write_whole(out / "fashion_mnist_test.npz", shipped_test_images(dataset, 100, rng))
        return document

    return exit_status_of(train)


if __name__ == "__main__":
    sys.exit(main())
