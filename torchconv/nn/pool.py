"""Pooling modules: torch.nn's classes, with this package's functions doing the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn
from torch import Tensor

from torchconv import functional


class _Pool:
    """What the poolings share: a function, and the names of the module's attributes that are its arguments."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]

    def forward(self, input: Tensor) -> Any:
        return type(self).function(input, *(getattr(self, name) for name in self.arguments))


class _MaxPool(_Pool):
    arguments = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


class _AvgPool(_Pool):
    arguments = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


class MaxPool1d(_MaxPool, torch.nn.MaxPool1d):
    """`torch.nn.MaxPool1d` on `torchconv.functional.max_pool1d`."""

    function = staticmethod(functional.max_pool1d)


class MaxPool2d(_MaxPool, torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on `torchconv.functional.max_pool2d`.

    Example:
        >>> torchconv.nn.MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    function = staticmethod(functional.max_pool2d)


class MaxPool3d(_MaxPool, torch.nn.MaxPool3d):
    """`torch.nn.MaxPool3d` on `torchconv.functional.max_pool3d`."""

    function = staticmethod(functional.max_pool3d)


class AvgPool1d(_Pool, torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d` on `torchconv.functional.avg_pool1d`."""

    function = staticmethod(functional.avg_pool1d)
    arguments = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


class AvgPool2d(_AvgPool, torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on `torchconv.functional.avg_pool2d`.

    Example:
        >>> torchconv.nn.AvgPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    function = staticmethod(functional.avg_pool2d)


class AvgPool3d(_AvgPool, torch.nn.AvgPool3d):
    """`torch.nn.AvgPool3d` on `torchconv.functional.avg_pool3d`."""

    function = staticmethod(functional.avg_pool3d)
