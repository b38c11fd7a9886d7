"""The fused block: convolution, bias, ReLU and max pooling in one kernel, and its gradients."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.conv_dgrad import launch_dgrad
from triton_kernels.conv_fprop import fprop_tile
from triton_kernels.conv_wgrad import launch_wgrad
from triton_kernels.launch import (
    BlockGeometry,
    accumulator,
    all_registers,
    dot_precision,
    empty,
    grid,
    is_channels_last,
    laid_out,
    lifted,
    needs_int64,
    on_device_of,
    three,
)
from triton_kernels.tiles import grouped, split_pixel, split_tap, store_pixels
from triton_kernels.tuning import tuned

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
    T2: tl.constexpr,
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

    For each group: rows m = (n, q, t), columns o.  One program computes a tile [BM, BN] of the convolution that holds
    whole pooling windows, of T2 rows each: the number of taps rounded up to a power of two.  Of each window it stores
    the maximum and its tap, [BM / T2, BN].  Values are rounded before they are compared, so that the same element wins
    as when the operations run one after the other.  The grid is (row tiles · column tiles, groups), in the order of
    `grouped`.
    """
    TAPS: tl.constexpr = POOL[0] * POOL[1] * POOL[2]
    BQ: tl.constexpr = BM // T2
    QD, QH, QW = OD // POOL[0], OH // POOL[1], OW // POOL[2]
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = grouped(tl.program_id(0), tl.cdiv(N * QD * QH * QW, BQ), (O + BN - 1) // BN)
    first = row.to(tl.int64 if WIDE else tl.int32) * BQ
    o_n = column.to(first.dtype) * BN + tl.arange(0, BN)  # [BN]

    tap = tl.arange(0, BM) % T2  # [BM]
    n, qd, qh, qw = split_pixel(first, tl.arange(0, BM) // T2, QD, QH, QW)
    td, th, tw = split_tap(tap, POOL)
    value = fprop_tile(
        p_x,
        p_w,
        p_bias,
        tl.where(tap < TAPS, n, N),  # no such sample: masked
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
    value = tl.reshape(tl.where((tap < TAPS)[:, None], value, 0.0), (BQ, T2, BN))
    tap = tl.arange(0, T2)[None, :, None]
    # The first tap that holds the greatest value, if that is positive; the last tap that holds a NaN, if one does.
    is_nan = value != value
    best = tl.maximum(tl.max(tl.where(is_nan, 0.0, value), axis=1), 0.0)  # [BQ, BN]
    holds = (value == best[:, None, :]) & (best[:, None, :] > 0)
    winner = T2 - tl.max(tl.where(holds, T2 - tap, 0), axis=1)
    nan = tl.max(tl.where(is_nan, tap, -1), axis=1)
    winner = tl.where(nan >= 0, nan, tl.where(winner < T2, winner, NOBODY))
    best = tl.where(nan >= 0, float("nan"), best)

    n, qd, qh, qw = split_pixel(first, tl.arange(0, BQ), QD, QH, QW)  # [BQ]
    pixel = (qd * QH + qh) * QW + qw
    o, pixels = group * O + o_n, QD * QH * QW
    store_pixels(p_y, best, n, o, pixel, n < N, o_n < O, groups * O, pixels, CHANNELS_LAST)
    store_pixels(p_winner, winner, n, o, pixel, n < N, o_n < O, groups * O, pixels, CHANNELS_LAST)


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
    taps = triton.next_power_of_2(math.prod(geometry.pool))
    precision = dot_precision(x)
    wide = needs_int64(x, w, y, slack=max(taps, configs.MOST_ROWS) * y.shape[1])
    x = x.contiguous(memory_format=memory_format)
    bias = bias if bias is None else bias.contiguous()

    def launch(tile: configs.Tile) -> None:
        flat = configs.flattened(tile, channels, math.prod(geometry.kernel))
        rows = max(tile.m, taps)
        windows = triton.cdiv(x.shape[0] * math.prod(pooled), rows // taps)
        block_fprop_kernel[grid(windows * triton.cdiv(outputs, tile.n), geometry.groups)](
            x,
            laid_out(w, flat, memory_format),
            bias,
            y,
            winner,
            N=x.shape[0],
            **lifted(geometry),
            MODE=geometry.padding_mode,
            POOL=three(geometry.pool, 1),
            NOBODY=DEAD,
            T2=taps,
            C=channels,
            O=outputs,
            CHANNELS_LAST=is_channels_last(memory_format),
            FLAT=flat,
            WIDE=wide,
            PRECISION=precision,
            ACC=accumulator(x.dtype),
            BM=rows,
            BN=tile.n,
            BK=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **all_registers(),
        )

    with on_device_of(x):
        tiles = configs.product_tiles(x.dtype, precision, wide)
        pixels, kernel = math.prod(pooled) * taps, math.prod(geometry.kernel)
        default = configs.product_tile(tiles, x.shape[0], pixels, outputs, geometry.groups, channels, kernel)
        details = {"pool": geometry.pool, "format": memory_format}
        tuned("block_fprop", x, w.shape, geometry, tiles, default, launch, wide, **details)
    return y, winner


def block_dgrad(
    g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, memory_format: torch.memory_format
) -> Tensor:
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled], read through the winners."""
    return launch_dgrad(g, _loadable(winner, g), w, None, geometry, geometry.pool, memory_format)


def block_wgrad(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel] and b̄ of the pooled gradient g [N, O, *pooled], read through the winners."""
    return launch_wgrad(x, g, _loadable(winner, g), with_bias, geometry, geometry.pool, memory_format)


def _loadable(winner: Tensor, g: Tensor) -> Tensor:
    """The winners, for float64 as wide as the gradient.

    Triton 3.8 lays out the operand of a product by the narrowest load behind it, and has no product of float64 whose
    operand is laid out for bytes.
    """
    return winner.long() if g.dtype is torch.float64 else winner
