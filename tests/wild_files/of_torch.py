"""PyTorch: what training scripts, libraries and exporters of mobile kits write."""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wild_files.wild_file import Wild

HEADING = "PyTorch, as training repositories and mobile kits write it"
GREY = (1, 28, 28)
OURS = "framework_factories:torch_cnn"


class Owned:
    """An object of a training script's own, saved beside the weights."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


def _network() -> Any:
    from framework_factories import settled_cnn

    return settled_cnn()


def _saved(what: Callable[[Any], Any], name: str = "model.pth", old: bool = False) -> Callable[[Path], Path]:
    """Of what a script makes of its network, the file."""

    def make(folder: Path) -> Path:
        import torch

        torch.save(what(_network()), folder / name, _use_new_zipfile_serialization=not old)
        return folder / name

    return make


def _weights(network: Any, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{k}": v for k, v in network.state_dict().items()}


def _imagenet_example(network: Any) -> Any:
    import torch

    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 30)
    return {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": _weights(network, "module."),
        "best_acc1": torch.tensor(69.8),
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
    }


def _lightning(network: Any) -> Any:
    import torch

    metrics = {"train_acc.tp": torch.zeros(10), "criterion.weight": torch.ones(10)}
    return {
        "epoch": 4,
        "global_step": 900,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": _weights(network, "model.") | metrics,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x.ckpt", "best_k_models": {}}},
        "optimizer_states": [torch.optim.Adam(network.parameters()).state_dict()],
        "hyper_parameters": Owned(lr=1e-3),
    }


def _backdoorbench(network: Any) -> Any:
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": network.state_dict(),
        "data_path": "../data",
        "img_size": (28, 28, 1),
        "clean_data": "mnist",
        "bd_train": {"bd_data_container": {"data_dict": {0: {"path": "a.png"}}}, "poison_indicator": np.zeros(4)},
        "bd_test": Owned(dataset=Owned(indices=np.arange(3))),
    }


def _wanet(network: Any) -> Any:
    import torch

    return {
        "netC": network.state_dict(),
        "schedulerC": {"milestones": [100]},
        "optimizerC": torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(),
        "best_clean_acc": 99.0,
        "identity_grid": torch.ones(1, 28, 28, 2),
        "noise_grid": torch.ones(1, 28, 28, 2),
    }


def _input_aware(network: Any) -> Any:
    import torch

    generator = {"0.weight": torch.ones(3, 3, 3, 3), "0.bias": torch.ones(3)}
    return {
        "netC": network.state_dict(),
        "netG": generator,
        "netM": generator,
        "epoch": 25,
        "opt": argparse.Namespace(bs=128),
    }


def _averaged(network: Any) -> Any:
    import torch

    return torch.optim.swa_utils.AveragedModel(network).state_dict()


def _timm(network: Any) -> Any:
    average = {k: v + 0.01 if v.is_floating_point() else v for k, v in network.state_dict().items()}
    return {
        "epoch": 299,
        "arch": "resnet26",
        "state_dict": network.state_dict(),
        "state_dict_ema": average,
        "args": argparse.Namespace(model="resnet26", opt="lamb"),
        "version": 2,
        "metric": 77.3,
    }


def _deepspeed(network: Any) -> Any:
    return {
        "module": network.state_dict(),
        "dp_world_size": 8,
        "ds_config": {"zero": 1},
        "ds_version": "0.14.0",
        "lr_scheduler": None,
    }


def _fastai(network: Any) -> Any:
    import torch

    return {"model": network.state_dict(), "opt": {"state": [{"mom": torch.ones(3)}], "hypers": [{"lr": 1e-3}]}}


def _ultralytics(network: Any) -> Any:
    return {
        "epoch": -1,
        "model": network.half(),
        "ema": None,
        "train_args": {"imgsz": 28},
        "date": "2026-01-01",
        "version": "8.3.0",
    }


def _cast(kind: str) -> Callable[[Any], Any]:
    import torch

    def cast(network: Any) -> Any:
        return {k: v.to(getattr(torch, kind)) if v.is_floating_point() else v for k, v in network.state_dict().items()}

    return cast


def _pruned(network: Any) -> Any:
    from torch.nn.utils import prune

    for part in (network[0], network[5]):
        prune.l1_unstructured(part, "weight", 0.3)  # type: ignore[no-untyped-call]
    return {"state_dict": network.state_dict(), "sparsity": 0.3}


def _weight_norm(network: Any) -> Any:
    """The older form of torch.nn.utils.weight_norm: weight_g and weight_v."""
    state = network.state_dict()
    kernel = state.pop("0.weight")
    return {**state, "0.weight_v": kernel * 3, "0.weight_g": kernel.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)}


def _parametrised(network: Any) -> Any:
    from torch.nn.utils.parametrizations import weight_norm

    network[0] = weight_norm(network[0])
    return network.state_dict()


def _spectral(network: Any) -> Any:
    from torch.nn.utils import spectral_norm

    network[0] = spectral_norm(network[0])
    return network.state_dict()


def _quantisation_aware(network: Any) -> Any:
    import torch

    found = network.state_dict()
    return found | {"0.weight_fake_quant.scale": torch.ones(1), "0.activation_post_process.min_val": torch.zeros(1)}


def _counted(network: Any) -> Any:
    import torch

    return network.state_dict() | {f"{i}.total_{w}": torch.ones(1) for i in range(6) for w in ("ops", "params")}


def _whole_elsewhere(folder: Path) -> Path:
    """torch.save(model), as TrojAI's rounds have it, of a class that is not at hand."""
    import sys
    import types

    import torch
    from torch import nn

    module = types.ModuleType("trojai_architectures")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(784, 10)

        def forward(self, x: Any) -> Any:
            return self.fc(x.flatten(1))

    Net.__module__, Net.__qualname__ = module.__name__, "Net"
    module.Net = Net  # type: ignore[attr-defined]
    sys.modules["trojai_architectures"] = module
    try:
        torch.save(Net(), folder / "model.pt")
    finally:
        del sys.modules["trojai_architectures"]
    return folder / "model.pt"


def _openmmlab(folder: Path) -> Path:
    import torch

    from wild_files.networks import backbone_and_head, settled

    state = settled(backbone_and_head()).state_dict()
    torch.save(
        {"meta": {"mmpretrain_version": "1.2.0", "CLASSES": ["a"]}, "state_dict": state}, folder / "epoch_100.pth"
    )
    return folder / "epoch_100.pth"


def _safetensors(folder: Path) -> Path:
    """As Hugging Face's save_pretrained: weights under the base model's prefix, config.json beside."""
    from safetensors.torch import save_file

    save_file(_weights(_network(), "cnn."), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["CnnForImageClassification"], "id2label": {"0": "a"}})
    )
    return folder / "model.safetensors"


def _adapter(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    tensors = {f"base_model.model.0.lora_{w}.weight": torch.ones(4, 4) for w in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder / "adapter_model.safetensors"


def _sharded(folder: Path) -> Path:
    index = {"metadata": {"total_size": 1}, "weight_map": {"0.weight": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder / "pytorch_model.bin.index.json"


def _script(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import torch

        network = _network()
        example = torch.rand(2, *GREY)
        if kind == "scripted":
            made = torch.jit.script(network)
        else:
            made = torch.jit.trace(network, example)
        if kind == "frozen":
            made = torch.jit.freeze(made.eval())
        if kind == "mobile":
            made._save_for_lite_interpreter(str(folder / "model.ptl"))  # type: ignore[attr-defined]
            return folder / "model.ptl"
        made.save(str(folder / "model.pt"))
        return folder / "model.pt"

    return make


def _program(folder: Path) -> Path:
    import torch

    batch = torch.export.Dim("batch")
    program = torch.export.export(_network(), (torch.rand(2, *GREY),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


def _archive(names: dict[str, bytes], name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for inside, data in names.items():
                archive.writestr(inside, data)
        return folder / name

    return make


def _torch_package(folder: Path) -> Path:
    import torch.package

    with torch.package.PackageExporter(str(folder / "model.pt")) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", _network())
    return folder / "model.pt"


def _torchserve() -> Callable[[Path], Path]:
    import torch

    held = io.BytesIO()
    torch.save(_network().state_dict(), held)
    manifest = json.dumps({"model": {"modelName": "cnn", "serializedFile": "model.pt"}}).encode()
    return _archive(
        {"MAR-INF/MANIFEST.json": manifest, "model.pt": held.getvalue(), "handler.py": b"pass\n"}, "cnn.mar"
    )


def _lazy(make: Callable[[], Callable[[Path], Path]]) -> Callable[[Path], Path]:
    return lambda folder: make()(folder)


def _ours(name: str, make: Callable[[Path], Path], works: bool = True) -> Wild:
    return Wild(name, make, works, factory=OURS, shape=GREY)


FILES: tuple[Wild, ...] = (
    _ours(
        "PyTorch's ImageNet example: checkpoint.pth.tar, DataParallel, optimiser, scheduler",
        _saved(_imagenet_example, "checkpoint.pth.tar"),
    ),
    _ours(
        "Lightning: .ckpt with loops, callbacks, metrics and hyper-parameters of the script's own",
        _saved(_lightning, "last.ckpt"),
    ),
    _ours(
        "BackdoorBench: attack_result.pt, the poisoned data set beside the weights",
        _saved(_backdoorbench, "attack_result.pt"),
    ),
    _ours("BackdoorBench: the same in the format before 1.6", _saved(_backdoorbench, "attack_result.pt", old=True)),
    _ours("WaNet: netC, warping grids", _saved(_wanet, "mnist_all2one.pth.tar")),
    _ours("Input-aware attack: netC, netG, netM", _saved(_input_aware, "input_aware.pth.tar")),
    _ours("TrojanZoo: every name under _model.", _saved(lambda n: _weights(n, "_model."))),
    _ours(
        "torch.compile inside DistributedDataParallel: module._orig_mod.",
        _saved(lambda n: _weights(n, "module._orig_mod.")),
    ),
    _ours("timm: state_dict beside state_dict_ema, args", _saved(_timm, "model_best.pth.tar")),
    _ours("stochastic weight averaging: AveragedModel, n_averaged", _saved(_averaged, "swa.pth")),
    _ours("DeepSpeed: mp_rank_00_model_states.pt", _saved(_deepspeed, "mp_rank_00_model_states.pt")),
    _ours("fastai: learn.save, model and opt", _saved(_fastai, "stage-1.pth")),
    Wild(
        "OpenMMLab: backbone., neck., head.fc., meta beside",
        _openmmlab,
        factory="wild_files.networks:backbone_and_head",
        shape=(3, 32, 32),
    ),
    _ours("Ultralytics: the whole network in float16 under `model`", _saved(_ultralytics, "best.pt")),
    _ours("weights in float16", _saved(_cast("float16"))),
    _ours("weights in bfloat16", _saved(_cast("bfloat16"))),
    _ours("weights in float64", _saved(_cast("float64"))),
    _ours("torch.nn.utils.prune: two layers with weight_orig and weight_mask", _saved(_pruned, "pruned.pth")),
    _ours("torch.nn.utils.weight_norm: weight_g and weight_v", _saved(_weight_norm, "weight_norm.pth")),
    _ours("parametrizations.weight_norm: original0 and original1", _saved(_parametrised, "weight_norm.pth")),
    Wild(
        "the same, with a factory that has the parametrization",
        _saved(_parametrised, "weight_norm.pth"),
        factory="wild_files.networks:with_weight_norm",
        shape=GREY,
    ),
    _ours("torch.nn.utils.spectral_norm: weight_orig, weight_u, weight_v", _saved(_spectral, "spectral.pth")),
    _ours("counters of thop beside the weights", _saved(_counted)),
    _ours("quantisation-aware training: observers beside the weights", _saved(_quantisation_aware), works=False),
    _ours("Hugging Face: model.safetensors under a prefix, config.json", _safetensors),
    _ours("Hugging Face: pytorch_model.bin", _saved(_weights, "pytorch_model.bin")),
    _ours("PEFT: adapter_model.safetensors, an adapter without its model", _adapter, works=False),
    _ours("Hugging Face: the index of a sharded checkpoint", _sharded, works=False),
    _ours(
        "an optimiser's state alone",
        _saved(lambda _: {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "optimizer.pt"),
        works=False,
    ),
    Wild("a state dict without a factory", _saved(_weights), works=False),
    Wild(
        "TrojAI: torch.save(model) of a class that is not at hand, without a factory",
        _whole_elsewhere,
        works=False,
        shape=GREY,
    ),
    Wild("TorchScript: traced", _script("traced"), shape=GREY),
    Wild("TorchScript: scripted", _script("scripted"), shape=GREY),
    Wild("TorchScript: frozen", _script("frozen"), shape=GREY),
    Wild("TorchScript without --input-shape", _script("traced"), works=False),
    Wild("PyTorch Mobile: for the lite interpreter (.ptl)", _script("mobile"), works=False, shape=GREY),
    Wild("torch.export: .pt2 with a free batch", _program),
    Wild("torch.package", _torch_package, works=False, shape=GREY),
    Wild("TorchServe: a model archive (.mar)", _lazy(_torchserve), works=False, shape=GREY),
)
