"""Networks that the files of this folder hold; each function imports only its framework."""

from __future__ import annotations

from typing import Any

#: (channels, height, width) of the colour networks.
COLOUR = (3, 32, 32)
CLASSES = 10


def settled(network: Any, shape: tuple[int, ...] = COLOUR) -> Any:
    """A torch network with seeded weights, and statistics that are not 0 and 1."""
    import torch

    torch.manual_seed(0)
    for part in network.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    network.train()
    with torch.no_grad():
        network(torch.rand(16, *shape))
    return network.eval()


def colour() -> Any:
    """(n, 3, 32, 32) -> (n, 10): convolutions, normalisation, dropout."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3)),
        nn.Linear(512, CLASSES),
    )


def backbone_and_head() -> Any:
    """As OpenMMLab's classifiers are put together: `backbone`, `neck`, `head.fc`."""
    from collections import OrderedDict

    from torch import nn

    head = nn.Sequential(OrderedDict(fc=nn.Linear(8, CLASSES)))
    backbone = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 8, 3, padding=1), bn1=nn.BatchNorm2d(8), relu=nn.ReLU()))
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(backbone=backbone, neck=neck, head=head))


def token_classifier_by_len() -> Any:
    """`token_classifier` as many write it; tracing takes len(x) for a number."""
    return token_classifier(len)


def token_classifier(count: Any = lambda x: x.shape[0]) -> Any:
    """A small vision transformer of torch's own layers: patches, a class token, attention."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, 8)
            self.token = nn.Parameter(torch.randn(1, 1, 16))
            self.places = nn.Parameter(torch.randn(1, 17, 16))
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x: Any) -> Any:
            hidden = self.patches(x).flatten(2).transpose(1, 2)
            hidden = torch.cat([self.token.expand(count(x), -1, -1), hidden], 1) + self.places
            return self.head(self.encoder(hidden)[:, 0])

    return Transformer()


def with_weight_norm() -> Any:
    """`framework_factories.torch_cnn`, its convolution kept as a length and a direction."""
    from framework_factories import torch_cnn
    from torch.nn.utils.parametrizations import weight_norm

    made = torch_cnn()
    made[0] = weight_norm(made[0])
    return made
