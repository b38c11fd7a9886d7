"""Average pooling and its adjoint."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import AvgGeometry, accumulator, elementwise, empty, pool_arguments, pool_cover
from triton_kernels.tiles import (
    channel_offset,
    pool_pixel,
    program_block,
    scaled,
    scaled_up,
    split_element,
    split_tap,
    window_over,
)


@triton.jit
def tap_count(
    o,
    SIZE,
    OUTPUTS,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    COUNT_PAD: tl.constexpr,
):
    """How many taps of window o count along one dimension, at least 1: those in the input, or in the padded input."""
    if ADAPTIVE:
        return tl.maximum(scaled_up(o + 1, SIZE, OUTPUTS) - scaled(o, SIZE, OUTPUTS), 1)
    else:  # noqa: RET505
        start = o * S - P
        low = -P if COUNT_PAD else 0
        high = SIZE + P if COUNT_PAD else SIZE
        first = tl.maximum((low - start + D - 1) // D, 0)
        last = tl.minimum((high - start + D - 1) // D, K)
        return tl.maximum(last - first, 1)


@triton.jit
def divisor_of(
    od,
    oh,
    ow,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    COUNT_PAD: tl.constexpr,
):
    """The divisor of window (od, oh, ow): the product of its counts."""
    count_d = tap_count(od, ID, OD, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], ADAPTIVE, COUNT_PAD)
    count_h = tap_count(oh, IH, OH, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], ADAPTIVE, COUNT_PAD)
    count_w = tap_count(ow, IW, OW, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], ADAPTIVE, COUNT_PAD)
    return count_d * count_h * count_w


@triton.jit
def avg_pool_kernel(
    p_x,
    p_y,
    N,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    DIVISOR: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[n, c, o] = Σ_k x[n, c, o·stride − padding + k·dilation] / divisor[o]

    The divisor is DIVISOR, or the number of taps that count if that is 0; integers truncate.  One program computes
    BLOCK elements of y, in the order in which they lie in memory.
    """
    first, lane = program_block(BLOCK, WIDE, ADAPTIVE)
    n, c, od, oh, ow = split_element(first, lane, C, OD, OH, OW, CHANNELS_LAST)
    o = first + lane
    m = n < N
    acc = tl.zeros([BLOCK], dtype=ACC)
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        kd, kh, kw = split_tap(tap, KERNEL)
        pixel, inside = pool_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, OD, OH, OW, STRIDE, PADDING, DILATION, ADAPTIVE)
        o_x = channel_offset(n, c, pixel, C, ID * IH * IW, CHANNELS_LAST)
        acc += tl.load(p_x + o_x, mask=m & inside, other=0).to(ACC)
    if DIVISOR:
        divisor = tl.full([BLOCK], DIVISOR, ACC)
    else:
        divisor = divisor_of(
            od, oh, ow, ID, IH, IW, OD, OH, OW, KERNEL, STRIDE, PADDING, DILATION, ADAPTIVE, COUNT_PAD
        ).to(ACC)
    y = acc // divisor if ACC.is_int() else acc / divisor
    tl.store(p_y + o, y.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def avg_pool_grad_kernel(
    p_g,
    p_x,
    N,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    COVER: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    DIVISOR: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x̄[n, c, i] = Σ g[n, c, o] / divisor[o] over the windows o that hold i

    A gather: each pixel asks the windows that can hold it, at most COVER per dimension, in a fixed order.  One program
    computes BLOCK elements of x̄, in the order in which they lie in memory.
    """
    first, lane = program_block(BLOCK, WIDE, ADAPTIVE)
    n, c, i_d, i_h, i_w = split_element(first, lane, C, ID, IH, IW, CHANNELS_LAST)
    i = first + lane
    m = n < N
    acc = tl.zeros([BLOCK], dtype=ACC)
    for window in range(COVER[0] * COVER[1] * COVER[2]):
        jd, jh, jw = split_tap(window, COVER)
        od, _, holds_d = window_over(i_d, jd, ID, OD, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], ADAPTIVE)
        oh, _, holds_h = window_over(i_h, jh, IH, OH, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], ADAPTIVE)
        ow, _, holds_w = window_over(i_w, jw, IW, OW, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], ADAPTIVE)
        holds = m & holds_d & holds_h & holds_w
        o_g = channel_offset(n, c, (od * OH + oh) * OW + ow, C, OD * OH * OW, CHANNELS_LAST)
        g = tl.load(p_g + o_g, mask=holds, other=0.0).to(ACC)
        if DIVISOR:
            acc += g / DIVISOR
        else:
            acc += g / divisor_of(
                od, oh, ow, ID, IH, IW, OD, OH, OW, KERNEL, STRIDE, PADDING, DILATION, ADAPTIVE, COUNT_PAD
            ).to(ACC)
    tl.store(p_x + i, acc.to(p_x.dtype.element_ty), mask=m)


def avg_pool(x: Tensor, geometry: AvgGeometry, memory_format: torch.memory_format) -> Tensor:
    """y [N, C, *output]: the means of x [N, C, *input]."""
    y = empty(x, (*x.shape[:2], *geometry.output), memory_format, x.dtype)
    elementwise(
        avg_pool_kernel,
        y,
        x.contiguous(memory_format=memory_format),
        y,
        **pool_arguments(x, y, geometry, memory_format),
        COUNT_PAD=geometry.count_include_pad,
        DIVISOR=geometry.divisor,
        ACC=accumulator(x.dtype),
    )
    return y


def avg_pool_grad(g: Tensor, geometry: AvgGeometry, memory_format: torch.memory_format) -> Tensor:
    """x̄ [N, C, *input]: g [N, C, *output] shared out over the windows."""
    x = empty(g, (*g.shape[:2], *geometry.input), memory_format, g.dtype)
    elementwise(
        avg_pool_grad_kernel,
        x,
        g.contiguous(memory_format=memory_format),
        x,
        **pool_arguments(g, x, geometry, memory_format),
        COVER=pool_cover(geometry),
        COUNT_PAD=geometry.count_include_pad,
        DIVISOR=geometry.divisor,
        ACC=accumulator(g.dtype),
    )
    return x
