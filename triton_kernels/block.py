"""The fused block: convolution, bias, ReLU and max pooling in one kernel, and its gradients."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.conv_dgrad import conv_dgrad, launch_dgrad
from triton_kernels.conv_fprop import fprop_tile
from triton_kernels.conv_wgrad import conv_wgrad, launch_wgrad
from triton_kernels.launch import (
    BlockGeometry,
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
from triton_kernels.pool_max import max_pool_scatter
from triton_kernels.tiles import channel_offset, split_pixel, split_tap

# The winner of a window in which no element is positive: more than the taps of any window.
DEAD = 255


@triton.jit
def block_fprop_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    p_winner,
    N,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741 - the field's letter for output channels
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    POOL: tl.constexpr,
    NOBODY: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[n, o, q] = max(0, max_t (x ∗ w + bias)[n, o, q·POOL + t]), and the tap t of the winner, or NOBODY

    For each group: rows m = (n, q), columns o.  One program computes the tile y [BM, BN]: for one tap t of the pooling
    window after the other the convolution's tile [BM, BN], of which only the running maximum is kept.  Values are
    rounded before they are compared, so the result is that of the three operations one after the other.

    The grid is (row tiles · column tiles, groups), columns fastest.
    """
    COLUMN_TILES: tl.constexpr = (O + BN - 1) // BN
    QD, QH, QW = OD // POOL[0], OH // POOL[1], OW // POOL[2]
    pid, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    o_m = (pid // COLUMN_TILES).to(tl.int64 if WIDE else tl.int32) * BM + tl.arange(0, BM)  # [BM]
    o_n = (pid % COLUMN_TILES).to(o_m.dtype) * BN + tl.arange(0, BN)  # [BN]
    n, qd, qh, qw = split_pixel(o_m, QD, QH, QW)

    best = tl.zeros([BM, BN], dtype=ACC)
    winner = tl.full([BM, BN], NOBODY, dtype=tl.int32)
    for tap in range(POOL[0] * POOL[1] * POOL[2]):
        td, th, tw = split_tap(tap, POOL)
        value = fprop_tile(
            p_x,
            p_w,
            p_bias,
            n,
            qd * POOL[0] + td,
            qh * POOL[1] + th,
            qw * POOL[2] + tw,
            o_n,
            N,
            ID,
            IH,
            IW,
            C,
            O,
            KERNEL,
            STRIDE,
            PADDING,
            DILATION,
            MODE,
            CHANNELS_LAST,
            FLAT,
            PRECISION,
            ACC,
            BM,
            BN,
            BK,
        )
        value = value.to(p_y.dtype.element_ty).to(ACC)
        wins = (value > best) | (value != value)
        best = tl.where(wins, value, best)
        winner = tl.where(wins, tap, winner)

    pixel = (qd * QH + qh) * QW + qw
    o_y = channel_offset(
        n[:, None], (group * O + o_n)[None, :], pixel[:, None], groups * O, QD * QH * QW, CHANNELS_LAST
    )
    mask = (n < N)[:, None] & (o_n < O)[None, :]
    tl.store(p_y + o_y, best.to(p_y.dtype.element_ty), mask=mask)
    tl.store(p_winner + o_y, winner.to(tl.uint8), mask=mask)


def block_fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y [N, O, *pooled] of x [N, C, *input] and w [O, C/groups, *kernel], and the winners, one byte each."""
    pooled = [o // p for o, p in zip(geometry.output, geometry.pool)]
    y = empty(x, (x.shape[0], w.shape[0], *pooled), memory_format, x.dtype)
    winner = empty(x, (x.shape[0], w.shape[0], *pooled), memory_format, torch.uint8)
    if y.numel() == 0:
        return y, winner
    channels, outputs = w.shape[1], w.shape[0] // geometry.groups
    tile = configs.product_tile(x.dtype, outputs)
    grid = (triton.cdiv(x.shape[0] * product(pooled), tile.m) * triton.cdiv(outputs, tile.n), geometry.groups)
    with on_device_of(x):
        block_fprop_kernel[grid](
            x.contiguous(memory_format=memory_format),
            w.contiguous(memory_format=memory_format),
            bias if bias is None else bias.contiguous(),
            y,
            winner,
            N=x.shape[0],
            **lifted(geometry),
            MODE=geometry.padding_mode,
            POOL=three(geometry.pool, 1),
            NOBODY=DEAD,
            C=channels,
            O=outputs,
            CHANNELS_LAST=is_channels_last(memory_format),
            FLAT=channels < configs.TAP_BY_TAP,
            WIDE=needs_int64(x, w, y, slack=tile.m * product(geometry.pool) * outputs * geometry.groups),
            PRECISION=dot_precision(x),
            ACC=accumulator(x.dtype),
            BM=tile.m,
            BN=tile.n,
            BK=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y, winner


def block_dgrad(
    g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, memory_format: torch.memory_format
) -> Tensor:
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled], read through the winners."""
    if g.dtype is torch.float64:
        return conv_dgrad(_scattered(g, winner, geometry, memory_format), w, None, geometry, memory_format)
    return launch_dgrad(g, winner, w, None, geometry, geometry.pool, memory_format)


def block_wgrad(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel] and b̄ of the pooled gradient g [N, O, *pooled], read through the winners."""
    if g.dtype is torch.float64:
        return conv_wgrad(x, _scattered(g, winner, geometry, memory_format), with_bias, geometry, memory_format)
    return launch_wgrad(x, g, winner, with_bias, geometry, geometry.pool, memory_format)


def _scattered(g: Tensor, winner: Tensor, geometry: BlockGeometry, memory_format: torch.memory_format) -> Tensor:
    """The gradient of the convolution's output, written out: for float64 alone.

    Triton 3.8 lays out the operand of a float64 product by the narrowest load behind it, the winners', and then cannot
    compile the product for sm_100.  Nobody trains in float64.
    """
    ones = (1,) * len(geometry.pool)
    windows = SimpleNamespace(
        input=geometry.output,
        output=g.shape[2:],
        kernel=geometry.pool,
        stride=geometry.pool,
        padding=(0,) * len(ones),
        dilation=ones,
        adaptive=False,
    )
    return max_pool_scatter(g, winner, windows, memory_format)
