"""PyTorch to ONNX: exported programs (.pt2), TorchScript, state dicts (.pth, .safetensors) and pickled modules.

What opening each of them can do (torch 2.13, read in its source): a .pt2 is unpickled without restriction when the
restricted way fails, and its shape expressions go through ``sympify``, which evaluates Python; TorchScript is a program;
a pickled module is whatever its pickle says. So all three are opened in a fully locked-in process only. A state dict
is read with ``weights_only=True``, safetensors holds no code.

The exporter is ``torch.onnx.export`` on torch.export first (it refuses what it cannot capture), the older tracing one
second; TorchScript has only the second.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.checkpoint import Candidate, fitted, read_without_code, state_dicts
from onnxspect.converters.sources.exported import (
    Attempt,
    Exported,
    Source,
    call_factory,
    chosen_head,
    missing_extra,
    quiet,
)
from onnxspect.converters.sources.libraries import library_network
from onnxspect.converters.text import printable

try:
    import torch
    from torch import nn
except ImportError:
    raise missing_extra("torch", "torch") from None

_SAFE_WAY = "save its state_dict() and give the network as --factory package.module:function"
_OWN_NETWORK = (
    "give a function of your own that makes this network: --factory package.module:function; the weights are then read off the pickle, "
    "and nothing that it names is imported"
)
_EXPORT_OPSET = 18  # the lowest that torch.export's exporter writes without converting down


def export(source: Source) -> Exported:
    """Open the file and say how to export it."""
    torch.set_num_threads(1)
    if source.format == "torch-pt2":
        return _exported_program(source)
    if source.format == "torch-script":
        return _torch_script(source)
    if source.format == "safetensors":
        return _with_weights(source, [Candidate("", _safetensors(source.path))])
    return _pickled(source)


def _exported_program(source: Source) -> Exported:
    source.require_sandbox("a .pt2 file can run code when it is opened", _SAFE_WAY)
    try:
        program = torch.export.load(source.path)
    except Exception as error:
        raise _unreadable("torch.export cannot load it", error) from None
    tensors = [a for a in (program.example_inputs or ((), {}))[0] if isinstance(a, torch.Tensor)]
    if len(tensors) != 1 and not source.input_shape:
        raise OnnxspectError(
            f"the program takes {len(tensors)} tensors, not one image",
            "export the program of one image: torch.export.export(model, (image,))",
        )
    shape = source.input_shape or tuple(int(d) for d in tensors[0].shape[1:])
    module = program.module()
    batch = _fixed_batch(program)
    made = _from_module(module, shape, batch=batch, exporters=())
    direct = Attempt("torch.onnx (exported program)", lambda: _dynamo(program, shape, batch))
    attempts = [direct]
    if batch:  # exported for one batch size: try to capture it again with a free one
        again = Attempt("torch.onnx (captured again, free batch)", lambda: _dynamo(module, shape, 0))
        with contextlib.suppress(Exception):  # where the program checks its input's size, it stays as it is
            free = _from_module(module, shape, batch=0, exporters=())
            free.run(np.zeros((batch + 1, *shape), np.float32))
            return replace(free, attempts=(again,))
    return replace(made, attempts=tuple(attempts))


def _fixed_batch(program: Any) -> int:
    """The batch size that the program was exported for, or 0 where it is free."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            first = node.meta["val"].shape[0]
            return int(first) if isinstance(first, int) else 0
    return 0


def _torch_script(source: Source) -> Exported:
    source.require_sandbox("a TorchScript file is a program", _SAFE_WAY)
    try:
        module = torch.jit.load(source.path, map_location="cpu").eval()
    except Exception as error:
        raise _unreadable("TorchScript cannot load it", error) from None
    if not source.input_shape:
        raise _shape_needed("TorchScript")
    return _from_module(module, source.input_shape, exporters=("trace",), head=source.head)


def _pickled(source: Source) -> Exported:
    foreign = _foreign_globals(source.path)
    try:
        content = torch.load(source.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        candidates = _without_code(source)
        if candidates and (source.factory or any(not c.of_module for c in candidates)):
            return _with_weights(source, candidates)
        named = f" ({_strangest(foreign)})" if foreign else ""
        source.require_sandbox(
            f"it is not a plain state dict but a pickle that runs code when it is opened{named}", _SAFE_WAY
        )
        if not foreign:
            raise _unreadable("torch cannot load it", error) from None
        return _whole_module(source, foreign)
    except Exception as error:
        raise _unreadable("torch cannot load it", error) from None
    return _with_weights(source, state_dicts(content))


def _without_code(source: Source) -> list[Candidate]:
    """The state dicts of a pickle whose own classes are not run; none where it holds nothing of the kind."""
    with contextlib.suppress(Exception):  # what goes wrong is said by the way that opens it in the sandbox
        return state_dicts(read_without_code(source.path))
    return []


def _whole_module(source: Source, foreign: list[str]) -> Exported:
    """A pickled nn.Module; this process is locked in."""
    try:
        content = torch.load(source.path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise OnnxspectError(
            f"it is a pickle that needs {_strangest(foreign)}, and opening it (in the sandbox) failed: "
            f"{type(error).__name__}: {printable(str(error), 300)}",
            _OWN_NETWORK,
        ) from None
    modules = [content] if isinstance(content, nn.Module) else []
    if isinstance(content, Mapping):
        modules = [v for v in content.values() if isinstance(v, nn.Module)]
    if len(modules) != 1:
        raise OnnxspectError(f"the pickle holds {len(modules)} torch modules, not one", _SAFE_WAY)
    if not source.input_shape:
        raise _shape_needed("a pickled module")
    made = _from_module(modules[0].eval().float(), source.input_shape, head=source.head)
    note = "a pickled module runs code when it is opened: it was opened in the sandbox only"
    return replace(made, warnings=(*made.warnings, note))


def _with_weights(source: Source, candidates: list[Candidate]) -> Exported:
    """Load a state dict into what the user's factory returns."""
    weights = candidates[0].tensors
    if not source.factory:
        shown = ", ".join(f"{printable(k, 40)} {tuple(v.shape)}" for k, v in list(weights.items())[:4])
        raise OnnxspectError(
            f"holds {len(weights)} tensors ({shown}, ...) but no network",
            "give the function that makes the network: --factory package.module:function",
        )
    module, shape = library_network(source, candidates) or (call_factory(source), ())
    if not isinstance(module, nn.Module):
        raise OnnxspectError(
            f"factory {source.factory} returned {type(module).__name__}, not a torch.nn.Module",
            "it must take nothing and return the network",
        )
    shape = source.input_shape or shape
    if not shape:
        raise _shape_needed("a state dict")
    wanted = module.state_dict()
    found = fitted(candidates, wanted)
    if found is None:
        raise _does_not_fit(source, weights, wanted)
    try:
        module.load_state_dict(dict(found.tensors))
    except RuntimeError as error:
        raise OnnxspectError(
            f"the weights do not fit {source.factory}: {printable(' '.join(str(error).split()), 400)}",
            "the factory must return the network that the weights were saved from",
        ) from None
    made = _from_module(module.eval().float(), shape, head=source.head)
    return replace(made, warnings=(*made.warnings, *found.notes))


def _does_not_fit(source: Source, weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> OnnxspectError:
    missing, extra = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    other = [k for k in wanted if k in weights and wanted[k].shape != weights[k].shape]
    if other and not missing and not extra:
        k = other[0]
        return OnnxspectError(
            f"the weights do not fit {source.factory}: size mismatch for {printable(k, 60)}, {tuple(weights[k].shape)} in the "
            f"file and {tuple(wanted[k].shape)} in the network",
            "the factory must return the network that the weights were saved from",
        )
    return OnnxspectError(
        f"the weights do not fit {source.factory}: {len(missing)} missing ({_some(missing)}), "
        f"{len(extra)} not known ({_some(extra)})",
        _way_out(extra),
    )


def _way_out(extra: list[str]) -> str:
    """What to do about tensors that the factory's network does not know, where their names say what they are."""
    if any("lora_" in k or ".adapter" in k for k in extra):
        return (
            "it is an adapter without its model (PEFT): merge them first, with merge_and_unload() and save_pretrained()"
        )
    if any("fake_quant" in k or "activation_post_process" in k for k in extra):
        return (
            "it is a checkpoint of quantisation-aware training: the factory must prepare the network as the script did "
            "(prepare_qat), or export ONNX from that script"
        )
    if any("parametrizations." in k for k in extra):
        return "the factory must register the same parametrizations (torch.nn.utils.parametrize) as the script that saved it"
    return "the factory must return the network that the weights were saved from"


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise missing_extra("safetensors", "torch") from None
    try:
        return dict(load_file(path))
    except Exception as error:
        raise _unreadable("safetensors cannot read it", error) from None


def _strangest(names: list[str]) -> str:
    """The names that say most, first: what is neither Python's own nor torch's."""
    own = ("torch.", "builtins.", "__builtin__.")
    return ", ".join([n for n in names if not n.startswith(own)][:5] or names[:5])


def _foreign_globals(path: Path) -> list[str]:
    """Names that the pickle imports, besides torch's tensors and OrderedDict; found without running it."""
    data = b""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
                if name is not None and archive.getinfo(name).file_size < 1 << 28:
                    data = archive.read(name)
        else:
            with path.open("rb") as file:
                data = file.read(1 << 24)
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable("not a readable archive", error) from None
    safe = (
        "torch._utils ",
        "torch ",
        "torch.storage ",
        "torch._tensor ",
        "collections OrderedDict",
        "torch.serialization ",
    )
    found: list[str] = []
    stream = io.BytesIO(data)
    recent: list[str] = []
    # A legacy file is several pickles in a row; damaged opcodes end the check, and torch.load then says what is wrong.
    with contextlib.suppress(ValueError, EOFError, IndexError, UnicodeDecodeError, OverflowError):
        while stream.tell() < len(data):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE"):
                    recent = [*recent[-1:], str(argument)]
                named = (
                    str(argument)
                    if opcode.name in ("GLOBAL", "INST")
                    else " ".join(recent)
                    if opcode.name == "STACK_GLOBAL"
                    else ""
                )
                if named and not named.startswith(safe) and printable(named) not in found:
                    found.append(printable(named))
    return [n.replace(" ", ".") for n in found]


class _Logits(nn.Module):
    """The one tensor of logits out of what a network returns."""

    def __init__(self, inner: Any, head: str) -> None:
        super().__init__()
        self.inner, self.head = inner, head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return dict(_heads(self.inner(image)))[self.head]


def _heads(found: Any) -> list[tuple[str, Any]]:
    """(name, tensor) of everything that a network returns: names of a mapping or of a data class, else numbers from 0 on."""
    if isinstance(found, Mapping):
        pairs = [(str(k), v) for k, v in found.items()]
    elif isinstance(found, tuple | list):
        pairs = list(zip(getattr(found, "_fields", map(str, range(len(found)))), found, strict=False))
    elif hasattr(found, "logits"):
        pairs = [("logits", found.logits)]
    else:
        pairs = []
    return sorted(((k, v) for k, v in pairs if isinstance(v, torch.Tensor)), key=lambda p: p[0] != "logits")


def _from_module(
    module: Any,
    shape: tuple[int, ...],
    *,
    batch: int = 0,
    exporters: tuple[str, ...] = ("export", "trace"),
    head: str = "",
) -> Exported:
    with torch.no_grad():
        try:
            result = module(torch.zeros(batch or 2, *shape))
        except Exception as error:
            raise OnnxspectError(
                f"the network does not run on an input of shape {[batch or 2, *shape]}: "
                f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}",
                "give the shape of one sample: --input-shape 3,224,224",
            ) from None
    net: nn.Module = module
    notes: tuple[str, ...] = ()
    if not isinstance(result, torch.Tensor):
        names = [name for name, _ in _heads(result)]
        if not names:
            raise OnnxspectError(
                f"the network returns {type(result).__name__}, which holds no tensor", "return class scores"
            )
        at, notes = chosen_head(names, head)
        net = _Logits(module, names[at])

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(net(torch.from_numpy(images)).detach().cpu().numpy())

    attempts = []
    if "export" in exporters:
        attempts.append(Attempt("torch.onnx (torch.export)", lambda: _dynamo(net, shape, batch)))
    if "trace" in exporters:
        attempts.append(Attempt("torch.onnx (trace)", lambda: trace(net, shape, batch)))
    layout = "flat" if len(shape) == 1 else "NCHW" if len(shape) == 3 else ""
    return Exported(run, shape, tuple(attempts), {"torch": torch.__version__}, layout, batch=batch, warnings=notes)


def _dynamo(module: Any, shape: tuple[int, ...], batch: int) -> onnx.ModelProto:
    program_like = isinstance(module, torch.export.ExportedProgram)
    options: dict[str, Any] = {"dynamo": True, "opset_version": _EXPORT_OPSET, "verbose": False}
    if not program_like:
        if not batch:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
        options["args"] = (torch.zeros(batch or 2, *shape),)
    with quiet():
        program = torch.onnx.export(module, **options)
    return program.model_proto  # type: ignore[union-attr]


def trace(module: Any, shape: tuple[int, ...], batch: int, opset: int = 17) -> onnx.ModelProto:
    """Export by running once (torch's older exporter)."""
    free = {} if batch else {"input": {0: "batch"}, "logits": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder, quiet():  # inside the work folder, the only place to write
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            (torch.zeros(batch or 2, *shape),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=free,
        )
        return onnx.load(path)


def _shape_needed(what: str) -> OnnxspectError:
    return OnnxspectError(
        f"{what} does not say how large its images are", "give the shape of one sample: --input-shape 3,224,224"
    )


def _unreadable(what: str, error: Exception) -> OnnxspectError:
    return OnnxspectError(
        f"{what}: {type(error).__name__}: {printable(' '.join(str(error).split()), 300)}",
        "load it where it was saved, and export it there with torch.onnx.export",
    )


def _some(names: list[str]) -> str:
    return ", ".join(printable(n, 40) for n in names[:3]) + (", ..." if len(names) > 3 else "") or "none"
