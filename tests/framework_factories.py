"""Networks for the tests' weights, called by name through `convert(factory=...)`; each imports only its framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def torch_cnn() -> Any:
    """(batch, 1, 28, 28) -> (batch, 10)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 14 * 14, 10),
    )


def settled_cnn() -> Any:
    """`torch_cnn` with seeded weights, and statistics that are not 0 and 1."""
    import torch

    torch.manual_seed(0)
    made = torch_cnn()
    made.train()
    with torch.no_grad():
        made(torch.rand(32, 1, 28, 28))
    return made.eval()


def torch_dict_output() -> Any:
    """The same network, returning a dict as some libraries' models do."""
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch_cnn()

        def forward(self, image: Any) -> dict[str, Any]:
            return {"features": image, "logits": self.inner(image)}

    return Wrapped()


def torch_unsteady() -> Any:
    """A network that computes something else at each call, which no graph can hold."""
    import torch
    from torch import nn

    class Unsteady(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch_cnn()
            self.calls = 0

        def forward(self, image: Any) -> Any:
            self.calls += 1
            return self.inner(image) * torch.tensor(float(self.calls))

    return Unsteady()


def torch_two_inputs() -> Any:
    """No image classifier."""
    from torch import nn

    class Two(nn.Module):
        def forward(self, image: Any, more: Any) -> Any:
            return image + more

    return Two()


def verazuo_mnist() -> Any:
    """The network of verazuo's BadNets repository (MIT), as its state dict has it."""
    from torch import nn

    class BadNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2, 2))
            self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2, 2))
            self.fc1 = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
            self.fc2 = nn.Sequential(nn.Linear(512, 10), nn.Softmax(-1))

        def forward(self, image: Any) -> Any:
            hidden = self.conv2(self.conv1(image))
            return self.fc2(self.fc1(hidden.flatten(1)))

    return BadNet()


def returns_a_number() -> int:
    """No network at all."""
    return 3


def raises() -> None:
    """A factory with a fault."""
    raise RuntimeError("no such dataset")


def keras_small() -> Any:
    """The network of framework_models.small_network, without weights."""
    import keras
    from framework_models import small_network

    return small_network(keras.layers, keras.Sequential)


def flax_module() -> Any:
    """A Flax CNN for (28, 28, 1)."""
    from flax import linen as nn

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, image: Any) -> Any:
            hidden = nn.Conv(8, (3, 3), strides=(2, 2), padding="SAME")(image)
            hidden = nn.relu(nn.BatchNorm(use_running_average=True)(hidden))
            hidden = nn.avg_pool(hidden, window_shape=(2, 2), strides=(2, 2))
            hidden = nn.gelu(nn.Conv(8, (3, 3), padding="SAME")(hidden))
            hidden = nn.max_pool(hidden, window_shape=(3, 3), strides=(2, 2), padding="SAME")
            return nn.Dense(10)(hidden.reshape((hidden.shape[0], -1)))

    return CNN()


def takes_and_returns_arrays(variables: Any) -> Any:
    """A factory that misunderstood."""
    return variables


def flax_cnn(variables: Any) -> Callable[[Any], Any]:
    """image -> logits, for the variables in a file."""
    module = flax_module()
    return lambda image: module.apply(variables, image)
