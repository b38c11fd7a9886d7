"""The networks that can be trained, by name: this package's LeNet-5, and those of torchvision on its layers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from torchconv.convert import convert, fuse
from torchconv.models import LeNet5
from torchconv.training import UserError
from torchconv.training.runs import one_line


def build(
    name: str, in_channels: int, image_size: int, num_classes: int, layers: str = "torchconv", fused: bool = False
) -> nn.Module:
    """A network with new weights.

    Args:
        name: "lenet5", or one of `torchvision.models.list_models()`.
        in_channels: 1 (grey) or 3 (colour).
        image_size: height and width of the images.
        num_classes: length of the output.
        layers: whose convolutions and poolings, "torchconv" or "torch". Those that a network of torchvision calls as
            functions, where it has no layer, remain torch's.
        fused: run convolution, ReLU and max pooling as one block where they follow each other; the weights are the
            same, and have the same names.
    """
    try:
        if name == "lenet5":
            return LeNet5(in_channels, image_size, num_classes, nn=import_module(f"{layers}.nn"), fused=fused)
        network = _torchvision(name, in_channels, num_classes)
        if layers == "torchconv":
            report = convert(network)
            if report.left:  # nothing of torch's runs in silence
                raise ValueError(", ".join(f"{name}: {reason}" for name, reason in report.left.items()))
        if fused and (layers != "torchconv" or not fuse(network).done):
            raise ValueError("nothing to fuse: no convolution, ReLU and max pooling of torchconv's in sequence")
        _try(network, torch.zeros(2, in_channels, image_size, image_size), num_classes)
    # A network says in its own way what it cannot do.
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        size = f"{in_channels}x{image_size}x{image_size}"
        raise UserError(f"--model {name} cannot be used for images of {size} ({one_line(error)})") from error
    return network


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The layer that sees the images."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def _torchvision(name: str, in_channels: int, num_classes: int) -> nn.Module:
    from torchvision import models

    if name not in _classifiers():
        raise UserError(
            f"--model {name} is not known: expected lenet5, or a classifier of torchvision such as resnet18"
        )
    # Some initialise for seconds, or warn that they will not in future, unless they are told to.
    more: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **more)
    if in_channels != 3:
        path, first = next(item for item in network.named_modules() if isinstance(item[1], nn.Conv2d))
        replacement = nn.Conv2d(
            in_channels,
            first.out_channels,
            first.kernel_size,
            first.stride,
            first.padding,
            bias=first.bias is not None,
        )
        network.set_submodule(path, replacement)
    return network


def _classifiers() -> Iterable[str]:
    from torchvision import models

    return models.list_models(module=models)


@torch.no_grad()
def _try(network: nn.Module, images: torch.Tensor, num_classes: int) -> None:
    """Find out before any work whether images of that size go through."""
    network.eval()
    logits = network(images)
    network.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), num_classes):
        raise ValueError("its output is not one number for each class")
