"""Max pooling of windows that stand at positions of their own in every sample and channel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import (
    FractionalGeometry,
    accumulator,
    elementwise,
    empty,
    is_channels_last,
    needs_int64,
    sizes,
    three,
)
from triton_kernels.tiles import channel_offset, program_block, split_element, split_tap


@triton.jit
def fractional_max_pool_kernel(
    p_x,
    p_starts,
    p_y,
    p_index,
    N,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    KERNEL: tl.constexpr,
    RANK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[n, c, o] = max_k x[n, c, start[n, c, o] + k], and the winner's flat position in [ID, IH, IW]

    start is [N, C, Σ outputs]: the first positions of one dimension's windows after the other's; dimensions that were
    added in front of RANK have none.  Of equal values the first wins, a NaN wins over every number, and of NaNs the
    last wins.  One program computes BLOCK elements of y and index, in the order in which they lie in memory.
    """
    first, lane = program_block(BLOCK, WIDE, False)
    n, c, od, oh, ow = split_element(first, lane, C, OD, OH, OW, CHANNELS_LAST)
    o = first + lane
    m = n < N
    p_starts += (n * C + c) * (OD * (RANK > 2) + OH * (RANK > 1) + OW)
    start_w = tl.load(p_starts + OD * (RANK > 2) + OH * (RANK > 1) + ow, mask=m, other=0)
    start_h = tl.zeros_like(start_w)
    start_d = tl.zeros_like(start_w)
    if RANK > 1:
        start_h = tl.load(p_starts + OD * (RANK > 2) + oh, mask=m, other=0)
    if RANK > 2:
        start_d = tl.load(p_starts + od, mask=m, other=0)
    best = tl.full([BLOCK], -float("inf"), dtype=ACC)
    index = (start_d * IH + start_h) * IW + start_w
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        kd, kh, kw = split_tap(tap, KERNEL)
        pixel = ((start_d + kd) * IH + start_h + kh) * IW + start_w + kw
        o_x = channel_offset(n, c, pixel, C, ID * IH * IW, CHANNELS_LAST)
        x = tl.load(p_x + o_x, mask=m, other=-float("inf")).to(ACC)
        wins = (x > best) | (x != x)
        best = tl.where(wins, x, best)
        index = tl.where(wins, pixel, index)
    tl.store(p_y + o, best.to(p_y.dtype.element_ty), mask=m)
    tl.store(p_index + o, index, mask=m)


def fractional_max_pool(
    x: Tensor, starts: Tensor, geometry: FractionalGeometry, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y [N, C, *output] of x [N, C, *input], and the winners' positions in the flattened input, int64."""
    size = (*x.shape[:2], *geometry.output)
    y, index = empty(x, size, memory_format, x.dtype), empty(x, size, memory_format, torch.int64)
    elementwise(
        fractional_max_pool_kernel,
        y,
        x.contiguous(memory_format=memory_format),
        starts.contiguous(),
        y,
        index,
        N=x.shape[0],
        C=x.shape[1],
        **sizes(geometry),
        KERNEL=three(geometry.kernel, 1),
        RANK=len(geometry.kernel),
        CHANNELS_LAST=is_channels_last(memory_format),
        WIDE=needs_int64(x, y),
        ACC=accumulator(x.dtype),
    )
    return y, index
