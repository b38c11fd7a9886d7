"""The models that the benchmarks of a whole training step look at, each from this package and from torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import torchconv
import torchconv.nn
from torchconv.models import LeNet5


class Model(NamedTuple):
    """A model of ours, the same of torch.nn's, and the size of one sample."""

    name: str
    ours: Callable[[], torch.nn.Module]
    torchs: Callable[[], torch.nn.Module]
    size: tuple[int, ...]


def lenet(nn: Any) -> torch.nn.Module:
    return LeNet5(nn=nn)


def vgg(nn: Any) -> torch.nn.Module:
    """Three stages of two 3×3 convolutions and a pooling for 32-pixel images, in the manner of VGG."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return torch.nn.Sequential(*layers, nn.Flatten(-3), nn.Linear(256 * 4 * 4, 10))


def _fused(model: torch.nn.Module) -> torch.nn.Module:
    torchconv.fuse(model)
    return model


MODELS = (
    Model("LeNet-5", lambda: lenet(torchconv.nn), lambda: lenet(torch.nn), (1, 28, 28)),
    Model("LeNet-5, fused", lambda: LeNet5(fused=True), lambda: lenet(torch.nn), (1, 28, 28)),
    Model("VGG-style", lambda: vgg(torchconv.nn), lambda: vgg(torch.nn), (3, 32, 32)),
    Model("VGG-style, fused", lambda: _fused(vgg(torchconv.nn)), lambda: vgg(torch.nn), (3, 32, 32)),
)
