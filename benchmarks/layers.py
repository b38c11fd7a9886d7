"""The layers that the benchmarks look at, each buildable from torchconv.nn and from torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Layer(NamedTuple):
    """A layer of either namespace, the size of its input, and whether training asks for the input's gradient."""

    name: str
    build: Callable[[Any], torch.nn.Module]
    size: tuple[int, ...]
    input_gradient: bool = True


LAYERS = (
    Layer("lenet conv1 5x5 1→6", lambda nn: nn.Conv2d(1, 6, 5, padding=2), (256, 1, 28, 28), False),
    Layer("lenet conv2 5x5 6→16", lambda nn: nn.Conv2d(6, 16, 5), (256, 6, 14, 14)),
    Layer("lenet pool1 2x2", lambda nn: nn.MaxPool2d(2), (256, 6, 28, 28)),
    Layer("lenet pool2 2x2", lambda nn: nn.MaxPool2d(2), (256, 16, 10, 10)),
    Layer("stem 7x7 /2 3→64", lambda nn: nn.Conv2d(3, 64, 7, 2, 3), (32, 3, 224, 224), False),
    Layer("3x3 64→64", lambda nn: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 56, 56)),
    Layer("3x3 256→256", lambda nn: nn.Conv2d(256, 256, 3, padding=1), (32, 256, 14, 14)),
    Layer("1x1 64→256", lambda nn: nn.Conv2d(64, 256, 1), (32, 64, 56, 56)),
    Layer("3x3 /2 128→128", lambda nn: nn.Conv2d(128, 128, 3, 2, 1), (32, 128, 56, 56)),
    Layer("depthwise 3x3 64", lambda nn: nn.Conv2d(64, 64, 3, padding=1, groups=64), (32, 64, 56, 56)),
    Layer("3x3x3 32→64", lambda nn: nn.Conv3d(32, 64, 3, padding=1), (4, 32, 16, 28, 28)),
)
# Convolution, ReLU and max pooling in a row, which the fused block computes at once.
BLOCKS = (
    Layer("lenet block1 5x5 1→6", lambda nn: nn.Conv2d(1, 6, 5, padding=2), (256, 1, 28, 28), False),
    Layer("lenet block2 5x5 6→16", lambda nn: nn.Conv2d(6, 16, 5), (256, 6, 14, 14)),
    Layer("vgg block 3x3 64→64", lambda nn: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 56, 56)),
)
