"""Models built from this package's layers."""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType

import torch
from torch import Tensor

from torchconv import nn as torchconv_nn


class LeNet5(torch.nn.Module):
    """LeNet-5: two convolution-ReLU-pooling stages, then three fully connected layers.

    The layout of LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86 (11), 1998, with what is usual today in three places: ReLU for the scaled tanh, max
    pooling for the trained subsampling, and every channel of the second convolution sees all six maps of the first.

    ==========  =================  ==================
    layer       28-pixel images    32-pixel images
    ==========  =================  ==================
    input       C × 28 × 28        C × 32 × 32
    conv1       6 × 28 × 28        6 × 28 × 28
    pool1       6 × 14 × 14        6 × 14 × 14
    conv2       16 × 10 × 10       16 × 10 × 10
    pool2       16 × 5 × 5         16 × 5 × 5
    fc1         120                120
    fc2         84                 84
    fc3         num_classes        num_classes
    ==========  =================  ==================

    The first convolution pads 28-pixel images by two, so both sizes give the same maps from there on.

    Args:
        in_channels: 1 (grey) or 3 (colour).
        image_size: height and width of the images, 28 or 32.
        num_classes: length of the output.
        fused: run convolution, ReLU and pooling as one block, :class:`torchconv.nn.ConvReLUMaxPool2d`, which keeps
            less for the backward pass; it is this package's alone.
        nn: the namespace that the layers come from, `torchconv.nn` or `torch.nn`. Parameters have the same
            names, shapes and initial values in both, so weights move freely between them.

    Shape:
        - input: `(N, in_channels, image_size, image_size)`, or without `N`
        - output: `(N, num_classes)`, or without `N`: the logits, for softmax cross-entropy

    Example::

        >>> model = LeNet5(in_channels=3, image_size=32, num_classes=100)
        >>> model(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 100])
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        nn: ModuleType = torchconv_nn,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels is {in_channels!r}; expected 1 (grey) or 3 (colour)")
        if image_size not in (28, 32):
            raise ValueError(f"image_size is {image_size!r}; expected 28 or 32")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}; expected a positive integer")
        self.input_shape = (in_channels, image_size, image_size)

        if fused and nn is not torchconv_nn:
            raise ValueError(f"fused is True, and nn is {nn.__name__}; the fused block is torchconv.nn's alone")
        padding = (32 - image_size) // 2
        self.features = nn.Sequential(
            # The blocks' parameters have the names, shapes and initial values of the convolutions'.
            OrderedDict(
                conv1=nn.ConvReLUMaxPool2d(in_channels, 6, 5, padding=padding),
                conv2=nn.ConvReLUMaxPool2d(6, 16, 5),
            )
            if fused
            else OrderedDict(
                conv1=nn.Conv2d(in_channels, 6, 5, padding=padding),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(-3),  # counted from the end, so that one image without a batch works too
                fc1=nn.Linear(16 * 5 * 5, 120),
                relu1=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu2=nn.ReLU(),
                fc3=nn.Linear(84, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() not in (3, 4) or images.shape[-3:] != self.input_shape:
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"images has shape {tuple(images.shape)}; expected (N, {expected}) or ({expected})")
        logits: Tensor = self.classifier(self.features(images))
        return logits
