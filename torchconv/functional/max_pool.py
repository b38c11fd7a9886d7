"""Max pooling and adaptive max pooling, as in `torch.nn.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import (
    FLOATS,
    FLOATS_AND_INTEGERS,
    AdaptiveSize,
    Size,
    as_autocast,
    batched,
    check_bool,
    check_channels,
    check_dtype,
)
from torchconv.geometry import PoolGeometry
from torchconv.integers import remembered


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The greatest element of every window, as `torch.nn.functional.max_pool2d`.

        y[n, c, o] = max over taps k of input[n, c, o·stride − padding + k·dilation]

    Padding never wins.  Of equal values the first wins, in row-major order; a NaN wins over every number.  The gradient
    goes to the winner alone (Scherer, Müller & Behnke 2010).

    Args:
        input: [N, C, H, W] or [C, H, W], floating point or integer.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next three.
        stride: step between windows, in pixels; by default the window's size.
        padding: pixels added on either side, at most half the window.
        dilation: distance between the taps of a window, in pixels.
        ceil_mode: keep a last window that reaches beyond the padded input, if it starts in the input or below it.
        return_indices: also return the winners' positions in the flattened [H·W] input, int64.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = ⌊(H + 2·padding − dilation·(kH − 1) − 1) / stride⌋ + 1 (⌈⌉ with
        `ceil_mode`); with `return_indices` a tuple of it and the indices.

    Raises:
        RuntimeError: a size or value out of range.
        NotImplementedError: a dtype that has no order.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """1-D max pooling: `max_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """3-D max pooling: `max_pool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool1d` with `return_indices=True`."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool2d` with `return_indices=True`."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool3d` with `return_indices=True`."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def adaptive_max_pool2d(input: Tensor, output_size: AdaptiveSize, return_indices: bool = False) -> Any:
    """The greatest element of every window of an even division, as `torch.nn.functional.adaptive_max_pool2d`.

        y[n, c, o] = max of input[n, c, i] over ⌊o·H/H'⌋ ≤ i < ⌈(o + 1)·H/H'⌉

    The windows are those of He et al. 2014, "Spatial pyramid pooling in deep convolutional networks".

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        output_size: H' and W' in pixels; an int for both; None keeps the input's.
        return_indices: also return the winners' positions in the flattened [H·W] input, int64.

    Returns:
        [N, C, H', W'] or [C, H', W']; with `return_indices` a tuple of it and the indices.

    Raises:
        RuntimeError: a size out of range.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.adaptive_max_pool2d(torch.arange(9.0).view(1, 3, 3), 2)
        tensor([[[4., 5.],
                 [7., 8.]]])
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


def adaptive_max_pool1d(input: Tensor, output_size: AdaptiveSize, return_indices: bool = False) -> Any:
    """1-D adaptive max pooling: `adaptive_max_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: AdaptiveSize, return_indices: bool = False) -> Any:
    """3-D adaptive max pooling: `adaptive_max_pool2d` with three spatial dimensions; input [N, C, D, H, W]."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: AdaptiveSize, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool1d` with `return_indices=True`."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, True)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: AdaptiveSize, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` with `return_indices=True`."""
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, True)


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: AdaptiveSize, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool3d` with `return_indices=True`."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, True)


def _max_pool(
    name: str,
    rank: int,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    x = batched(name, rank, input)
    geometry = _pooling(name, x.dtype, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y, offset = autograd.max_pool(x if return_indices else as_autocast(name, x), geometry)
    return _results(y, offset, geometry, x is input, return_indices)


@remembered
def _pooling(
    name: str,
    dtype: torch.dtype,
    size: Sequence[int],
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
) -> PoolGeometry:
    check_dtype(name, dtype, FLOATS_AND_INTEGERS)
    check_bool(name, "ceil_mode", ceil_mode)
    return PoolGeometry.of_pool(size, len(size) - 2, kernel_size, stride, padding, dilation, ceil_mode)


def _adaptive_max_pool(name: str, rank: int, input: Tensor, output_size: AdaptiveSize, return_indices: bool) -> Any:
    x = batched(name, rank, input)
    geometry = _adaptive_pooling(name, x.dtype, x.shape, output_size)
    y, offset = autograd.max_pool(as_autocast(name, x), geometry)
    return _results(y, offset, geometry, x is input, return_indices)


@remembered
def _adaptive_pooling(name: str, dtype: torch.dtype, size: Sequence[int], output_size: AdaptiveSize) -> PoolGeometry:
    check_dtype(name, dtype, FLOATS)
    check_channels(name, size)
    return PoolGeometry.of_adaptive(size, len(size) - 2, output_size)


def _results(y: Tensor, offset: Tensor, geometry: PoolGeometry, is_batch: bool, return_indices: bool) -> Any:
    """What was asked for, of a batch or of a single input."""
    if not return_indices:
        return y if is_batch else y.squeeze(0)
    index = autograd.winner_index(offset, geometry)
    return (y, index) if is_batch else (y.squeeze(0), index.squeeze(0))
