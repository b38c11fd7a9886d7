"""wgrad: the gradients of a convolution's weight and bias, summed over batch and pixels in two passes."""

from __future__ import annotations

import math
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
    all_registers,
    dot_precision,
    empty,
    grid,
    is_channels_last,
    lifted,
    needs_int64,
    on_device_of,
    three,
)
from triton_kernels.splits import add_splits, partial_sums
from triton_kernels.tiles import (
    advance,
    input_offset,
    load_gradient,
    split_pixel,
    split_tap,
    split_window,
)
from triton_kernels.tuning import tuned


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

    For each group: rows (c, k) in the order in which the weight holds them, columns o, reduction m = (n, p).  The
    reduction is long and the result small, so split s sums the LENGTH pixels from s·LENGTH on: one program computes
    the tile [BM, BN] of partial sums s from tiles x [BM, BK] and g [BK, BN].  C and O are the channels of one group.

    `p_partial` is [splits, groups·O·C·taps], and with BIAS groups·O more: the programs of the first row tile add up
    the g that they read anyway.  The grid is (row tiles · column tiles, groups, splits), columns fastest: programs
    that run together share their x tiles.  With `p_winner`, g is given through its pooling; see `load_gradient`.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    COLUMN_TILES: tl.constexpr = (O + BN - 1) // BN
    pid, group, groups, split = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    o_m = pid // COLUMN_TILES * BM + tl.arange(0, BM)  # [BM]
    o_n = pid % COLUMN_TILES * BN + tl.arange(0, BN)  # [BN]
    c, tap = split_window(o_m, C, TAPS, CHANNELS_LAST)

    # The lanes of a warp lie along the last dimension: channels or pixels, whichever are neighbours in memory.
    PIXELS: tl.constexpr = 1 if CHANNELS_LAST else 0
    c = tl.expand_dims(group * C + c, 1 - PIXELS)
    kd, kh, kw = split_tap(tl.expand_dims(tap, 1 - PIXELS), KERNEL)
    m_m = tl.expand_dims(o_m < C * TAPS, 1 - PIXELS)
    o = tl.expand_dims(group * O + o_n, 1 - PIXELS)
    m_n = tl.expand_dims(o_n < O, 1 - PIXELS)

    acc = tl.zeros([BM, BN], dtype=ACC)
    acc_bias = tl.zeros([BK, BN] if CHANNELS_LAST else [BN, BK], dtype=ACC)
    start = split.to(tl.int64 if WIDE else tl.int32) * LENGTH
    k_n, k_d, k_h, k_w = split_pixel(start, tl.arange(0, BK), OD, OH, OW)  # [BK]
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1], tl.int32), OD, OH, OW)
    left = tl.full([], N, start.dtype) * OD * OH * OW - start
    for _ in range(0, tl.minimum(LENGTH, left).to(tl.int32), BK):
        n, od = tl.expand_dims(k_n, PIXELS), tl.expand_dims(k_d, PIXELS)
        oh, ow = tl.expand_dims(k_h, PIXELS), tl.expand_dims(k_w, PIXELS)
        m_k = n < N
        o_x, m_x = input_offset(
            n,
            c,
            od,
            oh,
            ow,
            kd,
            kh,
            kw,
            groups * C,
            ID,
            IH,
            IW,
            KERNEL,
            STRIDE,
            PADDING,
            DILATION,
            MODE,
            CHANNELS_LAST,
        )
        x = tl.load(p_x + o_x, mask=m_x & m_k & m_m, other=0.0)  # pixels [BK], rows [BM]
        g = load_gradient(
            p_g, p_winner, n, o, od, oh, ow, groups * O, OD, OH, OW, m_n & m_k, POOL, CHANNELS_LAST
        )  # pixels [BK], outputs [BN]
        if CHANNELS_LAST:
            acc = tl.dot(tl.trans(x), g, acc, input_precision=PRECISION, out_dtype=ACC)
        else:
            acc = tl.dot(x, tl.trans(g), acc, input_precision=PRECISION, out_dtype=ACC)
        if BIAS:  # noqa: SIM102 - the compiler knows this, and not the next
            if pid < COLUMN_TILES:
                acc_bias += g.to(ACC)
        k_n, k_d, k_h, k_w = advance(k_n, k_d, k_h, k_w, step_n, step_d, step_h, step_w, OD, OH, OW)

    weights = groups * O * C * TAPS
    p_partial += split.to(tl.int64) * (weights + groups * O if BIAS else weights)
    row, m_row = group * O + o_n, o_n < O
    # Turned round: the weights of one output channel are neighbours in memory.
    o_p = row[:, None] * (C * TAPS) + o_m[None, :]
    tl.store(p_partial + o_p, tl.trans(acc), mask=m_row[:, None] & (o_m < C * TAPS)[None, :])
    if BIAS:
        acc_bias = tl.sum(acc_bias, axis=1 - PIXELS)
        tl.store(p_partial + weights + row, acc_bias, mask=m_row & (pid < COLUMN_TILES))


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
    pixels, rows, precision = math.prod(geometry.output), channels * math.prod(geometry.kernel), dot_precision(g)
    # The last step of a split may reach some samples beyond the end.
    slack = configs.SPLIT_UNIT * max(math.prod(x.shape[1:]), math.prod(g.shape[1:]))
    wide = needs_int64(w) or needs_int64(x, g, slack=slack)
    tiles = configs.gradient_tiles(g.dtype, precision, wide)
    default = configs.gradient_tile(tiles, g.shape[0], pixels, rows, outputs, geometry.groups)
    splits, length = configs.split(g.shape[0] * pixels, rows, outputs, geometry.groups, default)
    partial = partial_sums(splits, w, bias)
    if w.numel() == 0:
        return w, bias
    x, g = x.contiguous(memory_format=memory_format), g.contiguous(memory_format=memory_format)
    winner = winner if winner is None else winner.contiguous(memory_format=memory_format)

    def launch(tile: configs.Tile) -> None:
        programs = triton.cdiv(rows, tile.m) * triton.cdiv(outputs, tile.n)
        conv_wgrad_kernel[grid(programs, geometry.groups, splits)](
            x,
            g,
            winner,
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
            WIDE=wide,
            PRECISION=precision,
            ACC=accumulator(g.dtype),
            BM=tile.m,
            BN=tile.n,
            BK=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **all_registers(),
        )

    with on_device_of(g):
        details = {"pool": pool, "format": memory_format, "bias": with_bias}
        tuned("conv_wgrad", g, w.shape, geometry, tiles, default, launch, wide, **details)
        add_splits(partial, w, bias)
    return w, bias
