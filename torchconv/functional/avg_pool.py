"""Average, adaptive average and power-average pooling, as in `torch.nn.functional`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import (
    FLOATS,
    FLOATS_AND_INT64,
    FLOATS_AND_INTEGERS,
    AdaptiveSize,
    Size,
    as_autocast,
    batched,
    check_bool,
    check_dtype,
    check_tensor,
)
from torchconv.geometry import AvgGeometry, PoolGeometry, extended
from torchconv.integers import as_int, is_integer, remembered


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Size = 1,
) -> Tensor:
    """The mean of every window, as `torch.nn.functional.avg_pool2d`.

        y[n, c, o] = Σ_k input[n, c, o·stride − padding + k·dilation] / divisor[o]

    Its gradient is the output's, upsampled and divided by the same divisors (LeCun et al. 1998).

    Args:
        input: [N, C, H, W] or [C, H, W], floating point or int64.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next two.
        stride: step between windows, in pixels; by default the window's size.
        padding: zeros added on either side, at most half the window.
        ceil_mode: keep a last window that reaches beyond the padded input, if it starts in the input or below it.
        count_include_pad: whether the divisor counts the padding (never what lies beyond it).
        divisor_override: the divisor, instead of the number of the window's elements.
        dilation: distance between the taps of a window, in pixels; beyond torch, which has none.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = ⌊(H + 2·padding − dilation·(kH − 1) − 1) / stride⌋ + 1 (⌈⌉ with
        `ceil_mode`).

    Raises:
        RuntimeError: a size or value out of range.
        NotImplementedError: a dtype that torch does not average.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.avg_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    return _avg_pool(
        "avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
    )


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    dilation: Size = 1,
) -> Tensor:
    """1-D average pooling: `avg_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None, dilation)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Size = 1,
) -> Tensor:
    """3-D average pooling: `avg_pool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _avg_pool(
        "avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
    )


def adaptive_avg_pool2d(input: Tensor, output_size: AdaptiveSize) -> Tensor:
    """The mean of every window of an even division, as `torch.nn.functional.adaptive_avg_pool2d`.

        y[n, c, o] = mean of input[n, c, i] over ⌊o·H/H'⌋ ≤ i < ⌈(o + 1)·H/H'⌉

    The windows are those of He et al. 2014, "Spatial pyramid pooling in deep convolutional networks".

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        output_size: H' and W' in pixels; an int for both; None keeps the input's.

    Returns:
        [N, C, H', W'] or [C, H', W'].

    Raises:
        RuntimeError: a size out of range.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.adaptive_avg_pool2d(torch.arange(9.0).view(1, 3, 3), 2)
        tensor([[[2., 3.],
                 [5., 6.]]])
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


def adaptive_avg_pool1d(input: Tensor, output_size: AdaptiveSize) -> Tensor:
    """1-D adaptive average pooling: `adaptive_avg_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: AdaptiveSize) -> Tensor:
    """3-D adaptive average pooling: `adaptive_avg_pool2d` with three spatial dimensions; input [N, C, D, H, W]."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


def lp_pool2d(
    input: Tensor, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """The power average of every window, as `torch.nn.functional.lp_pool2d`.

        y[n, c, o] = (Σ_k input[n, c, o·stride + k]^p)^(1/p), of a negative sum 0

    (Sermanet, Chintala & LeCun 2012, "Convolutional neural networks applied to house numbers digit classification".)

    Args:
        input: [N, C, H, W] or [C, H, W], floating point; integers if their power is floating point or int64.
        norm_type: the power p; ±inf takes the greatest or the least absolute value.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next.
        stride: step between windows, in pixels; by default the window's size.
        ceil_mode: keep a last window that reaches beyond the input, as long as it starts inside it.  As torch's, it
            weights such a window as if it were full.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = ⌊(H − kH) / stride⌋ + 1 (⌈⌉ with `ceil_mode`).

    Raises:
        ValueError: `norm_type` is zero.
        RuntimeError: a size or value out of range.
        NotImplementedError: a dtype whose power torch does not average.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.lp_pool2d(torch.tensor([[[3.0, 4.0]]]), 2, (1, 2))
        tensor([[[5.]]])
    """
    return _lp_pool("lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool1d(
    input: Tensor, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """1-D power-average pooling: `lp_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _lp_pool("lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """3-D power-average pooling: `lp_pool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _lp_pool("lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode)


def _avg_pool(
    name: str,
    rank: int,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    dilation: Size,
) -> Tensor:
    x = batched(name, rank, input)
    geometry = _averaging(
        name, x.dtype, x.shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    )
    y = autograd.avg_pool(as_autocast(name, x), geometry)
    return y if x is input else y.squeeze(0)


@remembered
def _averaging(
    name: str,
    dtype: torch.dtype,
    size: Sequence[int],
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> AvgGeometry:
    check_dtype(name, dtype, FLOATS_AND_INT64)
    check_bool(name, "ceil_mode", ceil_mode)
    check_bool(name, "count_include_pad", count_include_pad)
    if divisor_override is not None and not is_integer(divisor_override):
        raise TypeError(f"{name}(): divisor_override must be an int or None, but got {divisor_override!r}")
    if divisor_override == 0:
        raise RuntimeError(f"{name}(): divisor_override must not be zero")
    rank = len(size) - 2
    pool = PoolGeometry.of_pool(size, rank, kernel_size, stride, padding, dilation, ceil_mode)
    if rank == 3 and any(i < k for i, k in zip(pool.input, pool.kernel)):  # a rule of torch's in 3-D alone
        raise RuntimeError(
            f"{name}(): input smaller than kernel size: {pool.input} and {pool.kernel}, not counting the padding"
        )
    return extended(AvgGeometry, pool, count_include_pad, as_int(divisor_override or 0))


def _adaptive_avg_pool(name: str, rank: int, input: Tensor, output_size: AdaptiveSize) -> Tensor:
    x = batched(name, rank, input)
    y = autograd.avg_pool(as_autocast(name, x), _adaptive_averaging(name, x.dtype, x.shape, output_size))
    return y if x is input else y.squeeze(0)


@remembered
def _adaptive_averaging(name: str, dtype: torch.dtype, size: Sequence[int], output_size: AdaptiveSize) -> AvgGeometry:
    check_dtype(name, dtype, FLOATS)
    pool = PoolGeometry.of_adaptive(size, len(size) - 2, output_size)
    return extended(AvgGeometry, pool, False, 0)


def _lp_pool(
    name: str, rank: int, input: Tensor, p: float, kernel_size: Size, stride: Size | None, ceil_mode: bool
) -> Tensor:
    check_tensor(name, "input", input)
    check_bool(name, "ceil_mode", ceil_mode)
    if p == 0:
        raise ValueError(f"norm_type must be a non-zero value, but got {p}")
    if math.isinf(p):
        check_dtype(name, input.dtype, FLOATS_AND_INTEGERS)
    elif isinstance(p, float):  # powers of integers are floating point
        check_dtype(name, input.dtype, (*FLOATS_AND_INTEGERS, torch.bool))
    else:  # those of int64 and bool are int64, which average pooling takes
        check_dtype(name, input.dtype, (*FLOATS_AND_INT64, torch.bool))

    x = batched(name, rank, input)
    if math.isinf(p):
        pool = PoolGeometry.of_pool(x.shape, rank, kernel_size, stride, 0, 1, ceil_mode)
        sign = 1 if p > 0 else -1
        y = sign * autograd.max_pool(as_autocast(name, sign * x.abs()), pool)[0]
    else:
        averaged = torch.float32  # the power has a type that is: what it would be is checked above
        geometry = _averaging(name, averaged, x.shape, kernel_size, stride, 0, 1, ceil_mode, True, None)
        mean = autograd.avg_pool(as_autocast(name, x.pow(p)), geometry)
        y = (torch.sign(mean) * torch.relu(torch.abs(mean)) * geometry.taps).pow(1.0 / p)
    return y if x is input else y.squeeze(0)
