"""``python -m onnxspect.models.train_bank``: train a half of the bank; what is there already is not trained again.

Examples::

    python -m onnxspect.models.train_bank --part tuning --workers 1 --data-root DIR --out bank/tuning
    python -m onnxspect.models.train_bank --part judging --family tdc_mnist --device cuda --workers 8
    python -m onnxspect.models.train_bank --part tuning --list

Models are independent: several are trained at once in processes of their own (--workers), on a GPU too, where small networks leave most of it
free. A model whose trigger does not work well enough is listed at the end, and is no part of the bank.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from onnxspect.models.bank import recipes
from onnxspect.models.data import data_root
from onnxspect.models.train_command import exit_status_of, observe
from onnxspect.models.zoo_build import build_zoo


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 trained, 1 a model misses its floor, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m onnxspect.models.train_bank", description="Train the bank.")
    parser.add_argument("--part", choices=["tuning", "judging"], required=True, help="which half")
    parser.add_argument("--family", action="append", default=[], help="only this family; several times for more")
    parser.add_argument("--most", type=int, help="at most so many clean, and so many infected models a family")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data sets (else ONNXSPECT_DATA)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the models go (default: bank/PART)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="models trained at once, a process each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--list", action="store_true", help="name the models and train none")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")

    def train() -> dict[str, Any]:
        wanted = [
            dataclasses.replace(r, training=dataclasses.replace(r.training, device=options.device))
            for r in recipes(options.part, tuple(options.family))
            if options.most is None or int(r.name.rsplit("_", 1)[1]) < options.most
        ]
        if options.list:
            print("\n".join(r.name for r in wanted))
            return {"models": []}
        out = options.out or Path("bank") / options.part
        return build_zoo(tuple(wanted), data_root(options.data_root), out, observe, options.workers)

    return exit_status_of(train)


if __name__ == "__main__":
    sys.exit(main())
