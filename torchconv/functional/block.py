"""Convolution, bias, ReLU and max pooling in one: beyond torch.nn.functional, which runs them one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import FLOATS, Size, batched, check_channels, check_dtype
from torchconv.functional.conv import check_bias, check_factors
from torchconv.geometry import BlockGeometry, ConvGeometry, extended
from torchconv.integers import as_tuple, remembered


def conv_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    pool_size: Size = 2,
) -> Tensor:
    """`max_pool2d(relu(conv2d(input, weight, bias, …)), pool_size)`, without the convolution's output in memory.

        y[n, o, q] = max(0, max_t (weight ∗ input + bias)[n, o, q·pool_size + t])

    What is kept for the backward pass is the input, the weight, and one byte for each pooled element: the winner's
    place in its window, or that no element of the window is positive.  The gradients are read through it.

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        weight: [O, C/groups, kH, kW], of the input's dtype and device.
        bias: [O] or None.
        stride, padding, dilation, groups: as in `conv2d`.
        pool_size: size of the pooling window, and the step between windows, in pixels; an int or one per dimension.

    Returns:
        [N, O, H', W'] or [O, H', W'], where H' = ⌊output of the convolution / pool_size⌋.

    Raises:
        RuntimeError: sizes, devices or dtypes that do not fit together, or a value out of range.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 5, 5)
        >>> torchconv.functional.conv_relu_max_pool2d(x, w, padding=2).shape
        torch.Size([8, 16, 16, 16])
    """
    name = "conv_relu_max_pool2d"
    input, weight, bias = check_factors(name, 2, input, weight, bias)
    check_dtype(name, input.dtype, FLOATS)
    x = batched(name, 2, input)
    geometry = _geometry(x.shape, weight.shape, stride, padding, dilation, groups, pool_size)
    check_bias(bias, weight, weight.shape[0])
    check_channels(name, x.shape)
    y = autograd.conv_relu_max_pool(x, weight, bias, geometry)[0]
    return y if x is input else y.squeeze(0)


@remembered
def _geometry(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    pool_size: Size,
) -> BlockGeometry:
    pool = as_tuple(pool_size, 2, "pool_size")
    # A winner is one byte, and one value of it says that nobody won.
    if min(pool) <= 0 or pool[0] * pool[1] > 255:
        raise RuntimeError(f"pool_size should be positive and span at most 255 pixels, but got pool_size={pool}")
    conv = ConvGeometry.of_conv(input, weight, stride, padding, dilation, groups)
    geometry = extended(BlockGeometry, conv, pool)
    if min(geometry.pooled) <= 0:
        raise RuntimeError(
            f"output size is too small: pooling the convolution's output of size {conv.output} "
            f"by pool_size={pool} would give {geometry.pooled}"
        )
    return geometry
