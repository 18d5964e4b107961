"""Every network: the papers' layers and widths, the right outputs, and a file that says the same in onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tolerances import NETWORK_32, SUM_32
from torch import nn

import onnxspect.converters  # noqa: F401 (before onnxruntime: switches its telemetry off)
from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures, exporting
from onnxspect.models.architectures.registry import register
from onnxspect.models.train import initialise

TORCH = [name for name in architectures.names() if architectures.get(name).framework == "torch"]
KERAS = [name for name in architectures.names() if architectures.get(name).framework == "keras"]
needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")
# The same code as a smaller sibling's, and slow on a CPU: these are built and counted, but not run.
HEAVY = {"resnet18_wide", "resnet34", "densenet"}


def network_of(name: str, shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10) -> nn.Module:
    network: nn.Module = architectures.get(name).build(shape, classes, 0)
    initialise(network, torch.Generator().manual_seed(3))
    return network.eval()


def widths(network: nn.Module) -> tuple[list[int], list[int]]:
    """Output channels of the convolutions and of the dense layers, in order."""
    modules = list(network.modules())
    return (
        [module.out_channels for module in modules if isinstance(module, nn.Conv2d)],
        [module.out_features for module in modules if isinstance(module, nn.Linear)],
    )


def run_file(path: Path, inputs: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def test_all_networks_of_the_papers_are_there() -> None:
    wanted = {"nc_mnist", "nc_gtsrb", "lenet5", "vgg9", "cifar_cnn", "resnet18_wide", "resnet18_compact"}
    assert wanted | {"mobilenet_v2", "densenet", "resnet34"} <= set(TORCH)
    assert len(KERAS) >= 2


@pytest.mark.parametrize(
    ("name", "shape", "convolutions", "dense"),
    [
        ("nc_mnist", (28, 28, 1), [16, 32], [512, 10]),
        ("nc_gtsrb", (32, 32, 3), [32, 32, 64, 64, 128, 128], [512, 10]),
        ("lenet5", (28, 28, 1), [6, 16], [120, 84, 10]),
        ("vgg9", (28, 28, 1), [16, 32, 64, 64, 128, 128], [128, 128, 10]),
        ("cifar_cnn", (32, 32, 3), [32, 32, 64, 64, 128, 128], [256, 10]),
        ("compact_cnn", (28, 28, 1), [16, 32, 48], [128, 10]),
    ],
)
def test_layers_of_plain_networks(
    name: str, shape: tuple[int, int, int], convolutions: list[int], dense: list[int]
) -> None:
    assert widths(network_of(name, shape)) == (convolutions, dense)


@pytest.mark.parametrize(
    ("name", "filters", "parameters"),
    # The standard ResNet-18 and -34 bodies for CIFAR-10 have 11.2 and 21.3 million parameters.
    [("resnet18_wide", {64, 128, 256, 512}, 11_173_962), ("resnet34", {64, 128, 256, 512}, 21_282_122)],
)
def test_standard_residual_networks(name: str, filters: set[int], parameters: int) -> None:
    network = network_of(name, (32, 32, 3))
    assert set(widths(network)[0]) == filters
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_compact_resnet_has_the_widths_of_re() -> None:
    convolutions, _ = widths(network_of("resnet18_compact", (32, 32, 3)))
    # 17 convolutions and the 1x1 shortcuts of the two groups that change width; the last group only changes size.
    assert set(convolutions) == {16, 32, 64}
    assert len(convolutions) == 17 + 3


def test_mobilenet_and_densenet_sizes() -> None:
    # Published: about 2.3 million for MobileNetV2 on CIFAR-10, 0.8 million for DenseNet-BC (100 layers, growth 12).
    for name, low, high in (("mobilenet_v2", 2.2e6, 2.4e6), ("densenet", 0.75e6, 0.80e6)):
        count = sum(parameter.numel() for parameter in network_of(name, (32, 32, 3)).parameters())
        assert low < count < high
    layers = [module for module in network_of("densenet", (32, 32, 3)).modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 1 + 3 * 16 * 2 + 2  # with the dense layer: 100


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("name", [name for name in TORCH if name not in HEAVY])
def test_outputs_and_gradients(name: str, shape: tuple[int, int, int]) -> None:
    network = network_of(name, shape, classes=7)
    inputs = torch.rand(2, shape[2], *shape[:2], generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = network(inputs)
    assert logits.shape == (2, 7)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), [inputs])
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("compact_cnn", True),
        ("resnet10_tiny", False),
        ("densenet_tiny", False),
        ("mobilenet_v2", False),
        *(
            pytest.param(*case, marks=pytest.mark.heavy)
            for case in [
                ("compact_cnn", False),
                ("resnet10_tiny", True),
                ("densenet_tiny", True),
                ("mobilenet_v2", True),
            ]
        ),
    ],
)
def test_exported_file_is_the_network(name: str, dynamo: bool, tmp_path: Path) -> None:
    network = network_of(name)
    path = tmp_path / "model.onnx"
    exporting.export_torch(network, (28, 28, 1), path, dynamo=dynamo)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [path] == list(tmp_path.iterdir())  # one file, no external data, nothing left over
    inputs = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(inputs)).numpy()
    got = run_file(path, inputs)  # a batch of three: the batch is dynamic
    assert np.abs(got - wanted).max() <= NETWORK_32 * max(1.0, float(np.abs(wanted).max()))
    assert b"site-packages" not in path.read_bytes()


@needs_keras
@pytest.mark.parametrize("name", KERAS)
def test_keras_files(name: str, tmp_path: Path) -> None:
    architecture = architectures.get(name)
    models = [architecture.build((28, 28, 1), 10, seed) for seed in (4, 4, 5)]
    first, again, other = ([np.asarray(weight) for weight in model.get_weights()] for model in models)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    path = tmp_path / "model.onnx"
    exporting.export_keras(models[0], path)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    inputs = architecture.file_format.encode(images)
    assert inputs.shape == images.shape
    assert inputs.max() == pytest.approx(architecture.file_format.white * images.max() / 255)
    got = run_file(path, inputs)
    assert np.allclose(got.sum(axis=1), 1.0, atol=SUM_32)
    assert np.abs(got - np.asarray(models[0].predict_on_batch(inputs))).max() < NETWORK_32


@needs_keras
def test_keras_twin_has_as_many_parameters_as_the_torch_network() -> None:
    for name in ("nc_mnist", "lenet5"):
        torch_count = sum(parameter.numel() for parameter in network_of(name).parameters())
        assert architectures.get(f"{name}_keras").build((28, 28, 1), 10, 0).count_params() == torch_count


def test_unknown_duplicate_and_too_deep() -> None:
    with pytest.raises(OnnxspectError, match=r"unknown network 'alexnet'"):
        architectures.get("alexnet")
    with pytest.raises(ValueError, match="registered twice"):
        register("lenet5", smallest=1)(architectures.get("lenet5").build)
    with pytest.raises(OnnxspectError, match="at least 16x16"):
        architectures.check("vgg9", (15, 28, 1), "architecture")


@pytest.mark.parametrize("name", [name for name in TORCH if name not in HEAVY])
def test_smallest_image_fits(name: str) -> None:
    smallest = architectures.get(name).smallest
    assert network_of(name, (smallest, smallest, 1), 3)(torch.zeros(2, 1, smallest, smallest)).shape == (2, 3)
