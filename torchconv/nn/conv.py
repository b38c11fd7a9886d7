"""Convolution modules: torch.nn's classes, with this package's functions doing the work.

Arguments, parameters, initialisation, repr and state_dict are inherited; only what `forward` calls is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn
from torch import Tensor

from torchconv import functional


class _Conv:
    """What the convolutions of every rank share: their function, and how it is called."""

    _computed_by: Callable[..., Tensor]

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._computed_by(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups, padding_mode=self.padding_mode
        )


class _ConvTranspose:
    """What the transposed convolutions of every rank share."""

    _computed_by: Callable[..., Tensor]

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":  # it can be set after the constructor has refused it
            raise ValueError(
                f"{type(self).__name__} pads with zeros alone, but its padding_mode is {self.padding_mode!r}"
            )
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )
        return self._computed_by(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` on `torchconv.functional.conv1d`."""

    _computed_by = staticmethod(functional.conv1d)


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` on `torchconv.functional.conv2d`: the same arguments, parameters and state_dict.

    Example:
        >>> layer = torchconv.nn.Conv2d(3, 16, kernel_size=5, padding="same")
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """

    _computed_by = staticmethod(functional.conv2d)


class Conv3d(_Conv, torch.nn.Conv3d):
    """`torch.nn.Conv3d` on `torchconv.functional.conv3d`."""

    _computed_by = staticmethod(functional.conv3d)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` on `torchconv.functional.conv_transpose1d`."""

    _computed_by = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on `torchconv.functional.conv_transpose2d`: same arguments, parameters, state_dict.

    Example:
        >>> layer = torchconv.nn.ConvTranspose2d(16, 3, kernel_size=2, stride=2)
        >>> layer(torch.randn(8, 16, 16, 16)).shape
        torch.Size([8, 3, 32, 32])
    """

    _computed_by = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` on `torchconv.functional.conv_transpose3d`."""

    _computed_by = staticmethod(functional.conv_transpose3d)


class LazyConv1d(_Conv, torch.nn.LazyConv1d):
    """`torch.nn.LazyConv1d`, which becomes this package's `Conv1d` at its first input."""

    _computed_by = staticmethod(functional.conv1d)
    cls_to_become = Conv1d


class LazyConv2d(_Conv, torch.nn.LazyConv2d):
    """`torch.nn.LazyConv2d`, which becomes this package's `Conv2d` at its first input."""

    _computed_by = staticmethod(functional.conv2d)
    cls_to_become = Conv2d


class LazyConv3d(_Conv, torch.nn.LazyConv3d):
    """`torch.nn.LazyConv3d`, which becomes this package's `Conv3d` at its first input."""

    _computed_by = staticmethod(functional.conv3d)
    cls_to_become = Conv3d


class LazyConvTranspose1d(_ConvTranspose, torch.nn.LazyConvTranspose1d):
    """`torch.nn.LazyConvTranspose1d`, which becomes this package's `ConvTranspose1d` at its first input."""

    _computed_by = staticmethod(functional.conv_transpose1d)
    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_ConvTranspose, torch.nn.LazyConvTranspose2d):
    """`torch.nn.LazyConvTranspose2d`, which becomes this package's `ConvTranspose2d` at its first input."""

    _computed_by = staticmethod(functional.conv_transpose2d)
    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_ConvTranspose, torch.nn.LazyConvTranspose3d):
    """`torch.nn.LazyConvTranspose3d`, which becomes this package's `ConvTranspose3d` at its first input."""

    _computed_by = staticmethod(functional.conv_transpose3d)
    cls_to_become = ConvTranspose3d
