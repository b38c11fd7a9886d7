"""Max pooling: the winners in one byte each, and the two linear maps that they define."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import PoolGeometry, accumulator, elementwise, empty, pool_arguments, pool_cover
from triton_kernels.tiles import channel_offset, pool_pixel, program_block, split_element, split_tap, window_over


@triton.jit
def max_pool_kernel(
    p_x,
    p_y,
    p_offset,
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
    LOWEST: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[n, c, o] = max_k x[n, c, o·stride − padding + k·dilation], and the flat tap k of the winner

    Of equal values the first wins, a NaN wins over every number, and of NaNs the last wins; a window of nothing but
    LOWEST reports its first tap inside the input.  One program computes BLOCK elements of y and offset, in the order
    in which they lie in memory.
    """
    first, lane = program_block(BLOCK, WIDE, ADAPTIVE)
    n, c, od, oh, ow = split_element(first, lane, C, OD, OH, OW, CHANNELS_LAST)
    o = first + lane
    m = n < N
    offset = tl.zeros([BLOCK], dtype=tl.int32)
    if not ADAPTIVE:
        first_d = tl.maximum((PADDING[0] - od * STRIDE[0] + DILATION[0] - 1) // DILATION[0], 0)
        first_h = tl.maximum((PADDING[1] - oh * STRIDE[1] + DILATION[1] - 1) // DILATION[1], 0)
        first_w = tl.maximum((PADDING[2] - ow * STRIDE[2] + DILATION[2] - 1) // DILATION[2], 0)
        offset = ((first_d * KERNEL[1] + first_h) * KERNEL[2] + first_w).to(tl.int32)
    best = tl.full([BLOCK], LOWEST, dtype=ACC)
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        kd, kh, kw = split_tap(tap, KERNEL)
        pixel, inside = pool_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, OD, OH, OW, STRIDE, PADDING, DILATION, ADAPTIVE)
        o_x = channel_offset(n, c, pixel, C, ID * IH * IW, CHANNELS_LAST)
        x = tl.load(p_x + o_x, mask=m & inside, other=LOWEST).to(ACC)
        wins = (x > best) | (x != x)
        best = tl.where(wins, x, best)
        offset = tl.where(wins, tap, offset)
    tl.store(p_y + o, best.to(p_y.dtype.element_ty), mask=m)
    tl.store(p_offset + o, offset.to(p_offset.dtype.element_ty), mask=m)


@triton.jit
def max_pool_gather_kernel(
    p_x,
    p_offset,
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
    ADAPTIVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[n, c, o] = x[n, c, winner(o)], and 0 where the winner lies outside the input

    One program computes BLOCK elements of y, in the order in which they lie in memory.
    """
    first, lane = program_block(BLOCK, WIDE, ADAPTIVE)
    n, c, od, oh, ow = split_element(first, lane, C, OD, OH, OW, CHANNELS_LAST)
    o = first + lane
    m = n < N
    kd, kh, kw = split_tap(tl.load(p_offset + o, mask=m, other=0).to(tl.int32), KERNEL)
    pixel, inside = pool_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, OD, OH, OW, STRIDE, PADDING, DILATION, ADAPTIVE)
    o_x = channel_offset(n, c, pixel, C, ID * IH * IW, CHANNELS_LAST)
    tl.store(p_y + o, tl.load(p_x + o_x, mask=m & inside, other=0), mask=m)


@triton.jit
def max_pool_scatter_kernel(
    p_g,
    p_offset,
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
    ADAPTIVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x̄[n, c, i] = Σ g[n, c, o] over the windows o whose winner is i

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
        od, kd, holds_d = window_over(i_d, jd, ID, OD, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], ADAPTIVE)
        oh, kh, holds_h = window_over(i_h, jh, IH, OH, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], ADAPTIVE)
        ow, kw, holds_w = window_over(i_w, jw, IW, OW, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], ADAPTIVE)
        holds = m & holds_d & holds_h & holds_w
        o = channel_offset(n, c, (od * OH + oh) * OW + ow, C, OD * OH * OW, CHANNELS_LAST)
        offset = tl.load(p_offset + o, mask=holds, other=0).to(tl.int32)
        # Losers are loaded too: neighbours that the mask tells apart would be loaded one by one, after the winners.
        g = tl.load(p_g + o, mask=holds, other=0).to(ACC)
        acc += tl.where(offset == (kd * KERNEL[1] + kh) * KERNEL[2] + kw, g, 0)
    tl.store(p_x + i, acc.to(p_x.dtype.element_ty), mask=m)


def max_pool(x: Tensor, geometry: PoolGeometry, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y [N, C, *output] of x [N, C, *input], and the winners' taps: uint8 for windows of up to 256, else int32."""
    size = (*x.shape[:2], *geometry.output)
    y = empty(x, size, memory_format, x.dtype)
    offset = empty(x, size, memory_format, torch.uint8 if math.prod(geometry.kernel) <= 256 else torch.int32)
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    elementwise(
        max_pool_kernel,
        y,
        x.contiguous(memory_format=memory_format),
        y,
        offset,
        **pool_arguments(x, y, geometry, memory_format),
        LOWEST=lowest,
        ACC=accumulator(x.dtype),
    )
    return y, offset


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, memory_format: torch.memory_format) -> Tensor:
    """y [N, C, *output]: the winners' values of x [N, C, *input]."""
    y = empty(x, (*x.shape[:2], *geometry.output), memory_format, x.dtype)
    elementwise(
        max_pool_gather_kernel,
        y,
        x.contiguous(memory_format=memory_format),
        offset.contiguous(memory_format=memory_format),
        y,
        **pool_arguments(x, y, geometry, memory_format),
    )
    return y


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, memory_format: torch.memory_format) -> Tensor:
    """x̄ [N, C, *input]: each element of g [N, C, *output] at its window's winner."""
    x = empty(g, (*g.shape[:2], *geometry.input), memory_format, g.dtype)
    elementwise(
        max_pool_scatter_kernel,
        x,
        g.contiguous(memory_format=memory_format),
        offset.contiguous(memory_format=memory_format),
        x,
        **pool_arguments(g, x, geometry, memory_format),
        COVER=pool_cover(geometry),
        ACC=accumulator(g.dtype),
    )
    return x
