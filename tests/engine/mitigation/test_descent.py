"""The descent of retraining is torch's own Adam with its cosine, without what their classes load."""

from __future__ import annotations

import subprocess
import sys

import torch

from onnxspect.engine.mitigation.descent import Descent


def test_the_descent_is_adam_with_a_cosine_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        {
            n: torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4) * k)
            for n, k in (("a", 1), ("b", 2), ("unused", 3))
        }
        for _ in range(2)
    )
    length = 7
    descent = Descent(ours, 0.05, length)
    optimizer = torch.optim.Adam(theirs.values(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
    for _ in range(length):
        assert descent.rate == optimizer.param_groups[0]["lr"]
        for _ in range(3):
            image = torch.rand(4, generator=generator)
            for parameters, step in (
                (ours, descent.step),
                (theirs, lambda loss: (optimizer.zero_grad(), loss.backward(), optimizer.step())),
            ):
                step(((parameters["a"] @ image).tanh() * (parameters["b"] @ image)).square().sum())
        for name, parameter in ours.items():
            assert torch.equal(parameter, theirs[name]), name
        descent.anneal()
        schedule.step()
    assert abs(descent.rate) < 1e-12
    assert torch.equal(ours["unused"], torch.linspace(-1, 1, 12).view(3, 4) * 3)


def test_retraining_does_not_load_the_compiler_of_torch() -> None:
    code = (
        "import sys, torch\n"
        "from onnxspect.engine.mitigation.descent import Descent\n"
        "p = torch.nn.Parameter(torch.ones(3))\n"
        "d = Descent({'p': p}, 0.1, 2)\n"
        "d.step(p.square().sum())\n"
        "d.anneal()\n"
        "print(float(p[0].detach()) < 1, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
