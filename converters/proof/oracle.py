"""onnxruntime as the oracle: what the file *really* answers, with nothing rewritten on the way.

Graph optimisations are off. The default optimiser fuses Pad(0) into MaxPool as if it padded with -inf (onnxruntime
1.31: ResNet50V2's softmax is off by 7e-4), so an optimised session is no oracle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.file.oversized import arrays, copied, oversized, parted
from onnxspect.converters.file.runtime_refusal import way_out

#: How far onnxruntime rewrites a graph before it runs it; "all" is its default.
LEVELS: Mapping[str, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@functools.cache
def _preload_cuda() -> None:
    """Let onnxruntime find the CUDA libraries that torch's wheels brought."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()


def providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """Execution providers for `device` ("cpu", "cuda" or "cuda:N"): only those whose device torch sees.

    onnxruntime-gpu asked for CUDA on a machine without it prints a page of errors and falls back silently. It computes
    float32 in TF32 by default, and tries algorithms out, so that bits differ from run to run: an oracle does neither.
    """
    offered = "CUDAExecutionProvider" in ort.get_available_providers()
    if device.startswith("cuda") and torch.cuda.is_available() and offered:
        _preload_cuda()
        which = str(torch.device(device).index or 0)
        options = {"device_id": which, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _source(
    model: Path | bytes | onnx.ModelProto, outputs: Sequence[str] | None, options: ort.SessionOptions
) -> tuple[str | bytes, Mapping[str, np.ndarray]]:
    """What a session is made of, and arrays that must live as long as it does."""
    if isinstance(model, Path):
        return str(model), {}
    if isinstance(model, bytes):
        return model, {}
    values: Mapping[str, np.ndarray] = {}
    if oversized(model):
        model, large, _ = parted(model, "in-memory")
        values = arrays(large)
        options.add_external_initializers(list(values), [ort.OrtValue.ortvalue_from_numpy(v) for v in values.values()])
    elif outputs is not None:
        model = copied(model)
    if outputs is not None:
        present = {o.name: o for o in model.graph.output}
        # onnxruntime finds the type of an inner value by itself.
        wanted = [present.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
        del model.graph.output[:]
        model.graph.output.extend(wanted)
    return model.SerializeToString(), values


def of_file(file: OnnxFile) -> Path | onnx.ModelProto:
    """What a session over a file is made of: the file itself; or the model, where an input of it was bound or got a face."""
    return file.proto if file.bound or file.faced else file.path


class Oracle:
    """One onnxruntime session over a file or a model, optimisations off.

    Args:
        model: path of the file (external data is read beside it), a serialized model, or a model with all tensors inside it.
        device: "cpu", "cuda" or "cuda:N".
        threads: intra-operator threads; 0 lets onnxruntime choose.
        outputs: names of values that are computed in place of the model's own outputs; only where `model` is a ModelProto.
        level: how far onnxruntime rewrites the graph first, one of `LEVELS`; only an unoptimised session is an oracle.

    Raises:
        OnnxspectError: onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: Path | bytes | onnx.ModelProto,
        device: str = "cpu",
        threads: int = 0,
        outputs: Sequence[str] | None = None,
        level: str = "disabled",
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it would say comes as an exception
        source, self._arrays = _source(model, outputs, options)
        try:
            self._session = ort.InferenceSession(source, options, providers=providers(device))
        except Exception as error:  # onnxruntime raises a family of C++ exceptions without a common base
            where = f"{model}: " if isinstance(model, Path) else ""
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise caused_by(error, f"{where}onnxruntime refuses the model: {reason}", way_out(reason)) from error
        self.inputs = {i.name: (tuple(i.shape), i.type) for i in self._session.get_inputs()}
        self.outputs = {o.name: (tuple(o.shape), o.type) for o in self._session.get_outputs()}

    @property
    def provider(self) -> str:
        """The execution provider that runs the model."""
        return str(self._session.get_providers()[0])

    def dtype(self, name: str) -> type[np.generic]:
        """The numpy element type of input `name`."""
        return _NUMPY.get(self.inputs[name][1], np.float32)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """One call of the session; arrays in the order of `outputs` (all outputs by default)."""
        return list(self._session.run(list(outputs) if outputs is not None else None, dict(feeds)))

    def map(self, name: str, batch: np.ndarray, output: str, batch_size: int = 128) -> np.ndarray:
        """One output as `map_all` computes it."""
        return self.map_all(name, batch, [output], batch_size)[0]

    def map_all(self, name: str, batch: np.ndarray, outputs: Sequence[str], batch_size: int = 128) -> list[np.ndarray]:
        """`outputs` for every row of `batch` ``(n, ...)``, fed to input `name` in chunks.

        A file whose batch axis is fixed at b is fed b rows at a time, the last chunk padded with its own last row.

        Raises:
            OnnxspectError: there are no rows.
        """
        fixed = self.inputs[name][0][0] if self.inputs[name][0] else None
        step = fixed if isinstance(fixed, int) and fixed > 0 else batch_size
        parts: list[list[np.ndarray]] = []
        for start in range(0, len(batch), step):
            chunk = batch[start : start + step]
            n = len(chunk)
            if step == fixed and n < step:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], step - n, axis=0)])
            results = self.run({name: np.ascontiguousarray(chunk, dtype=self.dtype(name))}, outputs)
            parts.append([np.asarray(result)[:n] for result in results])
        if not parts:
            raise OnnxspectError("no rows to run the model on")
        return [np.concatenate(values) for values in zip(*parts, strict=True)]
