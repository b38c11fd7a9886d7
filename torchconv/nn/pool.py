"""Pooling modules: torch.nn's classes, with this package's functions doing the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn
from torch import Tensor

from torchconv import functional


class _MaxPool:
    _computed_by: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self._computed_by(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class _AvgPool:
    _computed_by: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self._computed_by(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class MaxPool1d(_MaxPool, torch.nn.MaxPool1d):
    """`torch.nn.MaxPool1d` on `torchconv.functional.max_pool1d`."""

    _computed_by = staticmethod(functional.max_pool1d)


class MaxPool2d(_MaxPool, torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on `torchconv.functional.max_pool2d`.

    Example:
        >>> torchconv.nn.MaxPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    _computed_by = staticmethod(functional.max_pool2d)


class MaxPool3d(_MaxPool, torch.nn.MaxPool3d):
    """`torch.nn.MaxPool3d` on `torchconv.functional.max_pool3d`."""

    _computed_by = staticmethod(functional.max_pool3d)


class AvgPool1d(torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d` on `torchconv.functional.avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AvgPool2d(_AvgPool, torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on `torchconv.functional.avg_pool2d`.

    Example:
        >>> torchconv.nn.AvgPool2d(2)(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    _computed_by = staticmethod(functional.avg_pool2d)


class AvgPool3d(_AvgPool, torch.nn.AvgPool3d):
    """`torch.nn.AvgPool3d` on `torchconv.functional.avg_pool3d`."""

    _computed_by = staticmethod(functional.avg_pool3d)


class _AdaptiveMaxPool:
    _computed_by: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self._computed_by(input, self.output_size, self.return_indices)


class _AdaptiveAvgPool:
    _computed_by: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self._computed_by(input, self.output_size)


class _LPPool:
    _computed_by: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self._computed_by(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class _FractionalMaxPool:
    _computed_by: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self._computed_by(
            input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, self._random_samples
        )


class _MaxUnpool:
    """What the max unpoolings share: they take the winners' positions, and may be told the output size."""

    _computed_by: Callable[..., Tensor]

    def forward(self: Any, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._computed_by(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AdaptiveMaxPool1d(_AdaptiveMaxPool, torch.nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d` on `torchconv.functional.adaptive_max_pool1d`."""

    _computed_by = staticmethod(functional.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool, torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` on `torchconv.functional.adaptive_max_pool2d`."""

    _computed_by = staticmethod(functional.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool, torch.nn.AdaptiveMaxPool3d):
    """`torch.nn.AdaptiveMaxPool3d` on `torchconv.functional.adaptive_max_pool3d`."""

    _computed_by = staticmethod(functional.adaptive_max_pool3d)


class AdaptiveAvgPool1d(_AdaptiveAvgPool, torch.nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` on `torchconv.functional.adaptive_avg_pool1d`."""

    _computed_by = staticmethod(functional.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool, torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` on `torchconv.functional.adaptive_avg_pool2d`."""

    _computed_by = staticmethod(functional.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool, torch.nn.AdaptiveAvgPool3d):
    """`torch.nn.AdaptiveAvgPool3d` on `torchconv.functional.adaptive_avg_pool3d`."""

    _computed_by = staticmethod(functional.adaptive_avg_pool3d)


class LPPool1d(_LPPool, torch.nn.LPPool1d):
    """`torch.nn.LPPool1d` on `torchconv.functional.lp_pool1d`."""

    _computed_by = staticmethod(functional.lp_pool1d)


class LPPool2d(_LPPool, torch.nn.LPPool2d):
    """`torch.nn.LPPool2d` on `torchconv.functional.lp_pool2d`."""

    _computed_by = staticmethod(functional.lp_pool2d)


class LPPool3d(_LPPool, torch.nn.LPPool3d):
    """`torch.nn.LPPool3d` on `torchconv.functional.lp_pool3d`."""

    _computed_by = staticmethod(functional.lp_pool3d)


class MaxUnpool1d(_MaxUnpool, torch.nn.MaxUnpool1d):
    """`torch.nn.MaxUnpool1d` on `torchconv.functional.max_unpool1d`."""

    _computed_by = staticmethod(functional.max_unpool1d)


class MaxUnpool2d(_MaxUnpool, torch.nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` on `torchconv.functional.max_unpool2d`."""

    _computed_by = staticmethod(functional.max_unpool2d)


class MaxUnpool3d(_MaxUnpool, torch.nn.MaxUnpool3d):
    """`torch.nn.MaxUnpool3d` on `torchconv.functional.max_unpool3d`."""

    _computed_by = staticmethod(functional.max_unpool3d)


class FractionalMaxPool2d(_FractionalMaxPool, torch.nn.FractionalMaxPool2d):
    """`torch.nn.FractionalMaxPool2d` on `torchconv.functional.fractional_max_pool2d`."""

    _computed_by = staticmethod(functional.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool, torch.nn.FractionalMaxPool3d):
    """`torch.nn.FractionalMaxPool3d` on `torchconv.functional.fractional_max_pool3d`."""

    _computed_by = staticmethod(functional.fractional_max_pool3d)
