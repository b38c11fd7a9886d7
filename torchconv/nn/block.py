"""The fused block as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchconv import functional
from torchconv.functional.arguments import Size
from torchconv.nn.conv import Conv2d


class ConvReLUMaxPool2d(Conv2d):
    """Convolution, bias, ReLU and max pooling in one; its parameters are those of the `Conv2d` that it is.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in `Conv2d`.
        pool_size: size of the pooling window, and the step between windows, in pixels.

    Shape:
        - input: [N, C, H, W] or [C, H, W]
        - output: [N, O, H', W'] or [O, H', W'], see `torchconv.functional.conv_relu_max_pool2d`

    Example:
        >>> block = torchconv.nn.ConvReLUMaxPool2d(3, 16, kernel_size=5, padding=2, pool_size=2)
        >>> block(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        pool_size: Size = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self.pool_size = pool_size

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv_relu_max_pool2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.pool_size
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool_size={self.pool_size}"
