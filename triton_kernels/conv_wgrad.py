"""wgrad: the gradients of a convolution's weight and bias, summed over batch and pixels in two passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.conv_depthwise import depthwise_wgrad, is_depthwise
from triton_kernels.launch import (
    ConvGeometry,
    accumulator,
    dot_precision,
    empty,
    is_channels_last,
    lifted,
    needs_int64,
    on_device_of,
    product,
    three,
)
from triton_kernels.splits import add_splits, partial_sums
from triton_kernels.tiles import advance, channel_offset, input_pixel, load_gradient, split_pixel, split_tap


@triton.jit
def conv_wgrad_kernel(
    p_x,
    p_g,
    p_winner,
    p_partial,
    N,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    LENGTH,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741 - the field's letter for output channels
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    BIAS: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """w̄[o, c, k] = Σ_{n,p} g[n, o, p] · x[n, c, p·stride − padding + k·dilation], and b̄[o] = Σ_{n,p} g[n, o, p]

    For each group: rows o, columns (c, k) in the order in which the weight holds them, reduction m = (n, p).  The
    reduction is long and the result small, so split s sums the LENGTH pixels from s·LENGTH on: one program computes
    the tile [BM, BN] of partial sums s from tiles g [BM, BK] and x [BK, BN].  C and O are the channels of one group.

    `p_partial` is [splits, groups·O·C·taps], and with BIAS groups·O more: the programs of the first column tile add
    up the g that they read anyway.  The grid is (row tiles · column tiles, groups, splits), rows fastest: programs
    that run together share their x tiles.  With `p_winner`, g is given through its pooling; see `load_gradient`.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    ROW_TILES: tl.constexpr = (O + BM - 1) // BM
    pid, group, groups, split = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    o_m = pid % ROW_TILES * BM + tl.arange(0, BM)  # [BM]
    o_n = pid // ROW_TILES * BN + tl.arange(0, BN)  # [BN]
    m_m, m_n = o_m < O, o_n < C * TAPS
    if CHANNELS_LAST:
        c, tap = o_n % C, o_n // C
    else:
        c, tap = o_n // TAPS, o_n % TAPS
    kd, kh, kw = split_tap(tap[None, :], KERNEL)  # [1, BN]

    # The lanes of a warp lie along the last dimension: what is innermost in memory comes last, and is turned round.
    PIXELS: tl.constexpr = 1 if CHANNELS_LAST else 0
    acc = tl.zeros([BM, BN], dtype=ACC)
    acc_bias = tl.zeros([BM], dtype=ACC)
    start = split.to(tl.int64 if WIDE else tl.int32) * LENGTH
    n, od, oh, ow = split_pixel(start, tl.arange(0, BK), OD, OH, OW)  # [BK]
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1], tl.int32), OD, OH, OW)
    for _ in range(0, LENGTH, BK):
        m_k = n < N
        g = load_gradient(
            p_g,
            p_winner,
            tl.expand_dims(n, PIXELS),
            tl.expand_dims(group * O + o_m, 1 - PIXELS),
            tl.expand_dims(od, PIXELS),
            tl.expand_dims(oh, PIXELS),
            tl.expand_dims(ow, PIXELS),
            groups * O,
            OD,
            OH,
            OW,
            tl.expand_dims(m_m, 1 - PIXELS) & tl.expand_dims(m_k, PIXELS),
            POOL,
            CHANNELS_LAST,
        )
        g = tl.trans(g) if CHANNELS_LAST else g  # [BM, BK]
        pixel, m_x = input_pixel(
            od[:, None], oh[:, None], ow[:, None], kd, kh, kw, ID, IH, IW, STRIDE, PADDING, DILATION, MODE
        )  # [BK, BN]
        o_x = channel_offset(n[:, None], (group * C + c)[None, :], pixel, groups * C, ID * IH * IW, CHANNELS_LAST)
        x = tl.load(p_x + o_x, mask=m_x & m_k[:, None] & m_n[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(g, x, acc, input_precision=PRECISION, out_dtype=ACC)
        if BIAS:
            acc_bias += tl.sum(g.to(ACC), axis=1)
        n, od, oh, ow = advance(n, od, oh, ow, step_n, step_d, step_h, step_w, OD, OH, OW)

    weights = groups * O * C * TAPS
    p_partial += split.to(tl.int64) * (weights + groups * O if BIAS else weights)
    row = group * O + o_m
    tl.store(p_partial + row[:, None] * (C * TAPS) + o_n[None, :], acc, mask=m_m[:, None] & m_n[None, :])
    if BIAS:
        tl.store(p_partial + weights + row, acc_bias, mask=m_m & (pid < ROW_TILES))


def conv_wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel], and b̄ [O] (or, without it, [0]); x is [N, C, *input], g [N, O, *output]."""
    return launch_wgrad(x, g, None, with_bias, geometry, (), memory_format)


def launch_wgrad(
    x: Tensor,
    g: Tensor,
    winner: Tensor | None,
    with_bias: bool,
    geometry: ConvGeometry,
    pool: Sequence[int],
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """`conv_wgrad`, of a gradient that is given through its pooling by `pool` if there are winners."""
    channels, outputs = x.shape[1] // geometry.groups, g.shape[1] // geometry.groups
    w = empty(g, (g.shape[1], channels, *geometry.kernel), memory_format, g.dtype)
    bias = g.new_empty(g.shape[1] if with_bias else 0)
    if is_depthwise(w, geometry):
        depthwise_wgrad(x, g, winner, w, bias, geometry, pool, memory_format)
        return w, bias
    pixels, columns = g.shape[0] * product(geometry.output), channels * product(geometry.kernel)
    tile = configs.gradient_tile(g.dtype, outputs)
    splits, length = configs.split(pixels, outputs, columns, geometry.groups)
    partial = partial_sums(splits, w, bias)
    grid = (triton.cdiv(outputs, tile.m) * triton.cdiv(columns, tile.n), geometry.groups, splits)
    with on_device_of(g):
        if grid[0]:
            conv_wgrad_kernel[grid](
                x.contiguous(memory_format=memory_format),
                g.contiguous(memory_format=memory_format),
                winner if winner is None else winner.contiguous(memory_format=memory_format),
                partial,
                N=g.shape[0],
                **lifted(geometry),
                MODE=geometry.padding_mode,
                LENGTH=length,
                C=channels,
                O=outputs,
                BIAS=with_bias,
                POOL=three(pool, 1),
                CHANNELS_LAST=is_channels_last(memory_format),
                WIDE=needs_int64(x, g, slack=splits * length * max(x.shape[1], g.shape[1])),
                PRECISION=dot_precision(g),
                ACC=accumulator(g.dtype),
                BM=tile.m,
                BN=tile.n,
                BK=tile.k,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
            add_splits(partial, w, bias)
    return w, bias
