"""Checkpoints as training scripts write them: opened in this process, up to the export, and none of their code is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_factories import settled_cnn, torch_cnn
from framework_models import Touch
from sources_support import HERE, needs
from tolerances import OPERATION_32
from torch import nn
from torch.nn.utils import prune

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.checkpoint import Inert, read_without_code, state_dicts
from onnxspect.converters.sources.exported import Source
from onnxspect.converters.sources.from_torch import export

pytestmark = needs("torch")
SHAPE = (1, 28, 28)
FACTORY = "framework_factories:torch_cnn"


@pytest.fixture(scope="module")
def network() -> Any:
    return settled_cnn()


class _Dataset:
    """What BackdoorBench saves beside its networks: an object of the script's own."""

    def __init__(self) -> None:
        self.indices = np.arange(5)


def _backdoorbench(network: Any) -> Any:
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": network.state_dict(),
        "clean_data": "mnist",
        "img_size": (28, 28, 1),
        "bd_train": {"x": np.zeros((3, 4)), "dataset": _Dataset()},
        "arguments": argparse.Namespace(lr=0.1, save=Path("somewhere")),
    }


def _compiled(network: Any) -> Any:
    return {f"_orig_mod.{k}": v for k, v in network.state_dict().items()}


def _lightning(network: Any) -> Any:
    weights = {f"model.{k}": v for k, v in network.state_dict().items()}
    return {"state_dict": {**weights, "criterion.weight": torch.ones(10)}, "hyper_parameters": {"lr": 1e-3}, "epoch": 4}


def _two_prefixes(network: Any) -> Any:
    return {f"module._orig_mod.backbone.{k}": v for k, v in network.state_dict().items()}


def _wanet(network: Any) -> Any:
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    noise = {"netG.weight": torch.ones(2, 2), "netG.bias": torch.ones(2)}
    return {
        "netG": noise,
        "netC": network.state_dict(),
        "optimizerC": optimiser.state_dict(),
        "identity_grid": torch.ones(1, 2),
    }


def _own_key(network: Any) -> Any:
    return {"best": {"student": network.state_dict()}, "acc": 0.9}


def _whole(network: Any) -> Any:
    return {"net": network, "acc": 97.0}


SAVED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "BackdoorBench": (_backdoorbench, ""),
    "torch.compile": (_compiled, "the prefix '_orig_mod.' was taken off"),
    "Lightning": (_lightning, "1 tensors beside the network were left (criterion.weight)"),
    "two prefixes": (_two_prefixes, "the prefix 'module._orig_mod.backbone.'"),
    "WaNet": (_wanet, ""),
    "a key of one's own": (_own_key, "the weights were taken from best.student"),
    "a whole network": (_whole, ""),
}


def _opened(path: Path, factory: str = FACTORY, kind: str = "torch-pickle", folder: Path = HERE) -> Any:
    return export(Source(path, kind, factory, SHAPE, path.parent, (str(folder),), ()))


def _same(opened: Any, network: Any) -> None:
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(
            opened.run(images), network(torch.from_numpy(images)).numpy(), rtol=OPERATION_32, atol=OPERATION_32
        )


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("name", SAVED)
def test_the_weights_are_found(name: str, old: bool, network: Any, tmp_path: Path) -> None:
    made, note = SAVED[name]
    path = tmp_path / "checkpoint.pt"
    torch.save(made(network), path, _use_new_zipfile_serialization=not old)
    opened = _opened(path)
    _same(opened, network)
    assert note in " ".join(opened.warnings)


def test_pruned_weights_are_put_together(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pruned = torch_cnn()
    layer = next(m for m in pruned.modules() if isinstance(m, nn.Conv2d))
    prune.random_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    path = tmp_path / "pruned.pth"
    torch.save(pruned.state_dict(), path)
    opened = _opened(path)
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    _same(opened, pruned.eval())
    assert any("1 pruned weights" in w for w in opened.warnings)


CNN = """
import torch
from torch import nn
open({mark!r}, "w").close()  # what an untrusted module does when it is imported
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(784, 10)
    def forward(self, x):
        return self.fc(self.flatten(x))
"""


def test_a_whole_network_whose_class_lies_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save(model): its weights go into the network of the user's own factory; the class in the pickle is not imported."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.mkdir(), mine.mkdir()
    mark = tmp_path / "imported"
    (theirs / "their_cnn.py").write_text(CNN.format(mark=str(mark)))
    (mine / "my_cnn.py").write_text(CNN.format(mark=str(tmp_path / "mine.txt")) + "\ndef net():\n    return Net()\n")
    monkeypatch.syspath_prepend(str(theirs))
    import their_cnn  # type: ignore[import-not-found]

    torch.manual_seed(2)
    network = their_cnn.Net().eval()
    path = tmp_path / "whole.pt"
    torch.save(network, path)
    sys.modules.pop("their_cnn")
    mark.unlink()
    monkeypatch.undo()
    _same(_opened(path, "my_cnn:net", folder=mine), network)
    assert not mark.exists()


def test_other_weights_do_not_fit(network: Any, tmp_path: Path) -> None:
    """A network with one more layer than the factory's is another one, though every tensor that is wanted is there."""
    path = tmp_path / "more.pth"
    torch.save({**network.state_dict(), "extra.weight": torch.ones(2, 2)}, path)
    with pytest.raises(OnnxspectError, match=r"do not fit .*1 not known \(extra\.weight\)"):
        _opened(path)
    first = next(iter(network.state_dict()))
    torch.save({**network.state_dict(), first: torch.ones(1, 2, 3, 4)}, path)
    with pytest.raises(OnnxspectError, match=r"size mismatch for"):
        _opened(path)


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    path = tmp_path / "evil.pt"
    torch.save({"model": {"a.weight": torch.ones(2), "a.bias": torch.ones(1)}, "note": Touch(mark)}, path)
    content = read_without_code(path)
    assert isinstance(content["note"], Inert)
    assert not mark.exists()
    assert state_dicts(content)[0].place == "model"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_there_is_named(library: str, network: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    try:
        __import__(library)
    except ImportError:
        with pytest.raises(OnnxspectError, match=f"names {library}, which is not installed"):
            _opened(path, f"{library}:resnet18")
        return
    with pytest.raises(OnnxspectError, match="do not fit"):
        _opened(path, f"{library}:resnet18")


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "nothing.pth"
    torch.save({"epoch": 3, "note": "none"}, path)
    with pytest.raises(OnnxspectError, match="without a state dict; it has epoch, note"):
        _opened(path)


def test_a_head_is_chosen_by_its_name(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({f"inner.{k}": v for k, v in network.state_dict().items()}, path)
    source = Source(path, "torch-pickle", "framework_factories:torch_dict_output", SHAPE, tmp_path, (str(HERE),), ())
    opened = export(source)
    assert any("of 2 heads the first was taken, logits" in w for w in opened.warnings)
    other = Source(**{**vars(source), "head": "features"})
    assert export(other).run(np.zeros((2, *SHAPE), np.float32)).shape == (2, *SHAPE)
    with pytest.raises(OnnxspectError, match="no head named nothing") as caught:
        export(Source(**{**vars(source), "head": "nothing"}))
    assert "logits, features" in caught.value.hint
