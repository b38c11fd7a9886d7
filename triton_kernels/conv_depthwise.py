"""Depthwise convolution: every group has one input channel, so there is no matrix to multiply."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.launch import (
    ConvGeometry,
    accumulator,
    all_registers,
    cover,
    elementwise,
    is_channels_last,
    lifted,
    needs_int64,
    on_device_of,
    product,
    three,
)
from triton_kernels.splits import add_splits, partial_sums
from triton_kernels.tiles import (
    advance,
    channel_offset,
    input_pixel,
    load_gradient,
    program_block,
    split_element,
    split_pixel,
    split_tap,
    window_over,
)

# With so many outputs per input channel, or taps, the matrix product of the other kernels wastes less.
_OUTPUTS, _TAPS = 16, 64


def is_depthwise(w: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the kernels of this file are to compute a convolution with weight `w`."""
    outputs = w.shape[0] // geometry.groups
    return geometry.groups > 1 and w.shape[1] == 1 and outputs < _OUTPUTS and product(geometry.kernel) <= _TAPS


@triton.jit
def depthwise_fprop_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    N,
    O,  # noqa: E741 - the field's letter for output channels
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[n, o, p] = bias[o] + Σ_k x[n, o // OUTPUTS, p·stride − padding + k·dilation] · w[o, k]

    One program computes BLOCK elements of y, in the order in which they lie in memory.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    first, lane = program_block(BLOCK, WIDE, False)
    n, o, od, oh, ow = split_element(first, lane, O, OD, OH, OW, CHANNELS_LAST)
    m = n < N
    acc = tl.zeros([BLOCK], dtype=ACC)
    if p_bias is not None:
        acc += tl.load(p_bias + o, mask=m, other=0.0).to(ACC)
    for tap in range(TAPS):
        kd, kh, kw = split_tap(tap, KERNEL)
        pixel, inside = input_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, STRIDE, PADDING, DILATION, MODE)
        o_x = channel_offset(n, o // OUTPUTS, pixel, O // OUTPUTS, ID * IH * IW, CHANNELS_LAST)
        x = tl.load(p_x + o_x, mask=m & inside, other=0.0).to(ACC)
        acc += x * tl.load(p_w + o * TAPS + tap, mask=m, other=0.0).to(ACC)
    tl.store(p_y + first + lane, acc.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def depthwise_dgrad_kernel(
    p_g,
    p_winner,
    p_w,
    p_bias,
    p_x,
    N,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    COVER: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x̄[n, c, i] = bias[c] + Σ_{o,k} g[n, o, (i + padding − k·dilation) / stride] · w[o, k], o // OUTPUTS = c

    A gather: each pixel asks the windows that can hold it, at most COVER per dimension, in a fixed order.  One program
    computes BLOCK elements of x̄, in the order in which they lie in memory.  With `p_winner`, g is given through its
    pooling: `load_gradient`.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    first, lane = program_block(BLOCK, WIDE, False)
    n, c, i_d, i_h, i_w = split_element(first, lane, C, ID, IH, IW, CHANNELS_LAST)
    m = n < N
    acc = tl.zeros([BLOCK], dtype=ACC)
    if p_bias is not None:
        acc += tl.load(p_bias + c, mask=m, other=0.0).to(ACC)
    for step in range(COVER[0] * COVER[1] * COVER[2] * OUTPUTS):
        jd, jh, jw = split_tap(step // OUTPUTS, COVER)
        od, kd, holds_d = window_over(i_d, jd, ID, OD, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], False)
        oh, kh, holds_h = window_over(i_h, jh, IH, OH, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], False)
        ow, kw, holds_w = window_over(i_w, jw, IW, OW, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], False)
        holds = m & holds_d & holds_h & holds_w
        o = c * OUTPUTS + step % OUTPUTS
        g = load_gradient(p_g, p_winner, n, o, od, oh, ow, C * OUTPUTS, OD, OH, OW, holds, POOL, CHANNELS_LAST)
        o_w = o * TAPS + (kd * KERNEL[1] + kh) * KERNEL[2] + kw
        acc += g.to(ACC) * tl.load(p_w + o_w, mask=holds, other=0.0).to(ACC)
    tl.store(p_x + first + lane, acc.to(p_x.dtype.element_ty), mask=m)


@triton.jit
def depthwise_wgrad_kernel(
    p_x,
    p_g,
    p_winner,
    p_partial,
    N,
    O,  # noqa: E741
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    LENGTH,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    BIAS: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    TAPS2: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """w̄[o, k] = Σ_{n,p} g[n, o, p] · x[n, o // OUTPUTS, p·stride − padding + k·dilation], and b̄[o] = Σ_{n,p} g[n, o, p]

    One program sums the LENGTH pixels m = (n, p) of its split for BN channels and all taps: a tile g [BK, BN] is read
    once, and for each tap the tile x [BK, BN] that it meets, most of which the cache still holds.  The sums are
    [TAPS2, BN], TAPS2 being the number of taps rounded up to a power of two.  `p_partial` is as in `conv_wgrad_kernel`.
    The grid is (channel tiles, splits).
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    split = tl.program_id(1)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)  # [BN]
    o_t = tl.arange(0, TAPS2)  # [TAPS2]
    m_n = o_n < O
    acc = tl.zeros([TAPS2, BN], dtype=ACC)
    acc_bias = tl.zeros([BN], dtype=ACC)
    start = split.to(tl.int64 if WIDE else tl.int32) * LENGTH
    n, od, oh, ow = split_pixel(start, tl.arange(0, BK)[:, None], OD, OH, OW)  # [BK, 1]
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1, 1], tl.int32), OD, OH, OW)
    for _ in range(0, LENGTH, BK):
        m = (n < N) & m_n[None, :]
        g = load_gradient(p_g, p_winner, n, o_n[None, :], od, oh, ow, O, OD, OH, OW, m, POOL, CHANNELS_LAST).to(
            ACC
        )  # [BK, BN]
        if BIAS:
            acc_bias += tl.sum(g, axis=0)
        for tap in range(TAPS):
            kd, kh, kw = split_tap(tap, KERNEL)
            pixel, inside = input_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, STRIDE, PADDING, DILATION, MODE)
            o_x = channel_offset(n, (o_n // OUTPUTS)[None, :], pixel, O // OUTPUTS, ID * IH * IW, CHANNELS_LAST)
            x = tl.load(p_x + o_x, mask=m & inside, other=0.0).to(ACC)  # [BK, BN]
            acc += tl.where(o_t[:, None] == tap, tl.sum(g * x, axis=0)[None, :], 0.0)
        n, od, oh, ow = advance(n, od, oh, ow, step_n, step_d, step_h, step_w, OD, OH, OW)

    p_partial += split.to(tl.int64) * (O * TAPS + O if BIAS else O * TAPS)
    tl.store(p_partial + o_n[None, :] * TAPS + o_t[:, None], acc, mask=(o_t < TAPS)[:, None] & m_n[None, :])
    if BIAS:
        tl.store(p_partial + O * TAPS + o_n, acc_bias, mask=m_n)


def depthwise_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format,
) -> None:
    """y [N, O, *output] of x [N, C, *input] and w [O, 1, *kernel], groups = C."""
    elementwise(
        depthwise_fprop_kernel,
        y,
        x.contiguous(memory_format=memory_format),
        w.contiguous(),
        bias if bias is None else bias.contiguous(),
        y,
        N=x.shape[0],
        O=w.shape[0],
        **lifted(geometry),
        OUTPUTS=w.shape[0] // geometry.groups,
        MODE=geometry.padding_mode,
        CHANNELS_LAST=is_channels_last(memory_format),
        WIDE=needs_int64(x, y, slack=1 << 12),
        ACC=accumulator(x.dtype),
    )


def depthwise_dgrad(
    g: Tensor,
    winner: Tensor | None,
    w: Tensor,
    bias: Tensor | None,
    x: Tensor,
    geometry: ConvGeometry,
    pool: Sequence[int],
    memory_format: torch.memory_format,
) -> None:
    """x̄ [N, C, *input] of g [N, O, *output] and w [O, 1, *kernel], groups = C."""
    elementwise(
        depthwise_dgrad_kernel,
        x,
        g.contiguous(memory_format=memory_format),
        winner if winner is None else winner.contiguous(memory_format=memory_format),
        w.contiguous(),
        bias if bias is None else bias.contiguous(),
        x,
        N=g.shape[0],
        C=geometry.groups,
        **lifted(geometry),
        OUTPUTS=w.shape[0] // geometry.groups,
        COVER=cover(geometry),
        POOL=three(pool, 1),
        CHANNELS_LAST=is_channels_last(memory_format),
        WIDE=needs_int64(g, x, slack=1 << 12),
        ACC=accumulator(g.dtype),
    )


def depthwise_wgrad(
    x: Tensor,
    g: Tensor,
    winner: Tensor | None,
    w: Tensor,
    bias: Tensor,
    geometry: ConvGeometry,
    pool: Sequence[int],
    memory_format: torch.memory_format,
) -> None:
    """w̄ [O, 1, *kernel], and b̄ if it has elements, of x [N, C, *input] and g [N, O, *output], groups = C."""
    pixels, taps = g.shape[0] * product(geometry.output), product(geometry.kernel)
    tile = configs.DEPTHWISE_TILES[g.dtype.itemsize]
    splits, length = configs.split(pixels, g.shape[1], taps, 1)
    partial = partial_sums(splits, w, bias)
    with on_device_of(g):
        depthwise_wgrad_kernel[(triton.cdiv(g.shape[1], tile.n), splits)](
            x.contiguous(memory_format=memory_format),
            g.contiguous(memory_format=memory_format),
            winner if winner is None else winner.contiguous(memory_format=memory_format),
            partial,
            N=g.shape[0],
            O=g.shape[1],
            **lifted(geometry),
            LENGTH=length,
            OUTPUTS=g.shape[1] // geometry.groups,
            MODE=geometry.padding_mode,
            BIAS=bias.numel() > 0,
            POOL=three(pool, 1),
            CHANNELS_LAST=is_channels_last(memory_format),
            WIDE=needs_int64(x, g, slack=splits * length * g.shape[1]),
            ACC=accumulator(g.dtype),
            TAPS2=triton.next_power_of_2(taps),
            BN=tile.n,
            BK=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **all_registers(),
        )
        add_splits(partial, w, bias)
