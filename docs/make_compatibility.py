"""Makes docs/compatibility.md from the cases of tests/: python docs/make_compatibility.py.

The ONNX files of the first tables are rebuilt and opened (tests/compatibility_cases.py), and so are the data sets of the last
(tests/wild_files/of_data.py). What becomes of files as others ship them is read from benchmarks/results/wild_files.json, which
benchmarks/wild_files.py writes (`make wild`).
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
WILD = HERE.parent / "benchmarks" / "results" / "wild_files.json"

#: What comes from elsewhere -> (what happens, the test that holds it).
CONVERTED = {
    "PyTorch: state dict, with --factory": ("works", "converters/sources/test_sources_torch.py::test_state_dict"),
    "PyTorch: TorchScript": ("works", "converters/sources/test_sources_torch.py::test_torch_script"),
    "PyTorch: exported program (.pt2), free batch or batch of 1": (
        "works",
        "converters/sources/test_sources_torch.py::test_exported_program",
    ),
    "PyTorch: safetensors, a state dict under keys, DataParallel, the old format": (
        "works",
        "converters/sources/test_sources_torch.py::test_weights_are_found",
    ),
    "PyTorch: BackdoorBench's attack_result.pt, `_orig_mod.`, Lightning, WaNet's netC, any prefix or key, a whole network": (
        "works, none of the pickle's own code is run",
        "converters/sources/test_checkpoint.py::test_the_weights_are_found",
    ),
    "PyTorch: pairs of torch.nn.utils.prune": (
        "works",
        "converters/sources/test_checkpoint.py::test_pruned_weights_are_put_together",
    ),
    "PyTorch: torch.save(model) of a class that lies beside the file": (
        "works with --factory; the class in the pickle is not imported",
        "converters/sources/test_checkpoint.py::test_a_whole_network_whose_class_lies_beside_the_file",
    ),
    "PyTorch: several heads": (
        "works, --head chooses",
        "converters/sources/test_checkpoint.py::test_a_head_is_chosen_by_its_name",
    ),
    "timm, torchvision by name, where installed": (
        "works, nothing is downloaded; else the library is named",
        "converters/sources/test_checkpoint.py::test_a_library_that_is_not_there_is_named",
    ),
    "Keras 3: .keras, .h5": ("works", "converters/sources/test_sources_frameworks.py::test_keras"),
    "Keras 3: augmentation layers, several heads, one sigmoid": (
        "works, --head chooses",
        "converters/sources/test_sources_frameworks.py::test_keras_as_tutorials_write_it",
    ),
    "Keras 2: .h5": ("works", "converters/sources/test_sources_frameworks.py::test_keras_2"),
    "TensorFlow: SavedModel": ("works", "converters/sources/test_sources_frameworks.py::test_saved_model"),
    "TFLite: float, float16, dynamic range": ("works", "converters/sources/test_sources_frameworks.py::test_tflite"),
    "TFLite: int8": ("works", "converters/sources/test_sources_frameworks.py::test_quantised_tflite"),
    "TFLite: int8 without a channel axis, as in the first tutorial": (
        "works",
        "converters/sources/test_sources_frameworks.py::test_tflite_of_the_first_tutorial",
    ),
    "JAX: Flax": ("works", "converters/sources/test_sources_frameworks.py::test_flax"),
    "onnxruntime: int8 in the format QOperator": (
        "works",
        "converters/lowering/test_lowering_deployed.py::test_operators_on_integers",
    ),
    "onnxruntime: int8 in the format QDQ": (
        "works",
        "converters/lowering/test_lowering_deployed.py::test_quantise_and_dequantise",
    ),
    "onnxruntime: quantised at run time": (
        "works",
        "converters/lowering/test_lowering_deployed.py::test_quantised_at_run_time",
    ),
    "onnxruntime: saved by its optimiser, level extended": (
        "works",
        "converters/lowering/test_lowering_deployed.py::test_saved_by_the_optimiser",
    ),
    "onnxruntime: saved by its optimiser, level all (blocked layout)": (
        "refused: scan the original, or save it at the level extended",
        "converters/lowering/test_lowering_deployed.py::test_a_file_for_one_kind_of_processor_is_refused_with_the_way_out",
    ),
}


def cases(name: str = "compatibility_cases") -> Any:
    """A module of tests/, which the test suite uses too."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module(name)


def page() -> str:
    """The page: a table a group."""
    module = cases()
    parts = [
        "# What can be scanned\n",
        "Made by `python docs/make_compatibility.py`, which rebuilds every ONNX file of the first tables and opens it; a test keeps the "
        "page up to date. What works was compared with onnxruntime; what does not is refused with the fact and the next step. After them "
        "come files and data sets as other people ship them, each made anew and opened (`make wild`).\n",
    ]
    for group, members in groupby(module.CASES, key=lambda c: c.group):
        parts.append(f"## {group}\n\n| file | | what is found, or why not | next step |\n|---|---|---|---|")
        for case in members:
            found = module.outcome(case)
            word = "works" if found.works else "refused"
            parts[-1] += f"\n| {case.name} | {word} | {_cell(found.said)} | {_cell(found.hint)} |"
        parts[-1] += "\n"
    parts.append("## From other frameworks, and as deployed\n\n| file | | held by |\n|---|---|---|")
    for name, (what, test) in CONVERTED.items():
        parts[-1] += f"\n| {name} | {what} | `{test.split('::')[1]}` |"
    parts[-1] += "\n"
    parts += [wild_table(group) for group in json.loads(WILD.read_text(encoding="utf-8"))["groups"].values()]
    parts.append(data_table())
    return "\n".join(parts)


def wild_table(group: dict[str, Any]) -> str:
    """What became of one group of files as others ship them."""
    head = f"## {group['heading']}\n\n| file | | what is found, or why not | next step, or what is said of it |\n|---|---|---|---|"
    return "\n".join(
        [head, *(row(f["name"], f["works"], f["said"], f["hint"], f["notes"]) for f in group["files"]), ""]
    )


def data_table() -> str:
    """What becomes of the data sets, each made and read."""
    module = cases("wild_files.of_data")
    head = f"## {module.HEADING}\n\n| data | | what is read, or why not | next step, or what is said of it |\n|---|---|---|---|"
    rows = []
    for heap in module.HEAPS:
        with tempfile.TemporaryDirectory() as folder:
            found = module.outcome(heap, Path(folder))
        rows.append(row(heap.name, found.works, found.said, found.hint, found.notes))
    return "\n".join([head, *rows, ""])


def row(name: str, works: bool, said: str, hint: str, notes: Sequence[str]) -> str:
    """One line of a table."""
    word = "works" if works else "refused"
    return f"| {_cell(name)} | {word} | {_cell(said)} | {_cell(hint or '; '.join(notes))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    (HERE / "compatibility.md").write_text(page(), encoding="utf-8")
