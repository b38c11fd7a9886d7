"""fprop: convolution as an implicit matrix product, without an im2col buffer."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.conv_depthwise import depthwise_fprop, is_depthwise
from triton_kernels.launch import (
    ConvGeometry,
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
)
from triton_kernels.tiles import (
    advance,
    flat_tap,
    grouped,
    input_offset,
    split_pixel,
    split_tap,
    split_window,
    store_pixels,
    zeros4,
)
from triton_kernels.tuning import tuned


@triton.jit
def fprop_tile(
    p_x,
    p_w,
    p_bias,
    n,
    od,
    oh,
    ow,
    o_n,
    N,
    ID,
    IH,
    IW,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """bias[o] + Σ_{c,k} x[n, c, p·stride − padding + k·dilation] · w[o, c, k]: [BM, BN]

    Rows are the output pixels (n, od, oh, ow) [BM], columns the output channels o_n [BN] of the program's group; the
    reduction over (c, k) walks tiles x [BM, BK] and w [BK, BN].  FLAT walks both as one index, in the order in which w
    holds them, so that few channels fill a step.  Otherwise a step is one tap and BK channels, which lie side by side
    in w (`laid_out`): one address per pixel serves them all.  Taps are counted on, not divided out of the step.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    BLOCKS: tl.constexpr = (C + BK - 1) // BK
    group, groups = tl.program_id(1), tl.num_programs(1)
    m_m, m_n = n < N, o_n < O
    # The lanes of a warp lie along the last dimension: what is innermost in memory comes last, and is turned round.
    PIXELS: tl.constexpr = 1 if CHANNELS_LAST else 0
    acc = tl.zeros([BM, BN], dtype=ACC)
    t_d, t_h, t_w, block = zeros4()
    for step in range((C * TAPS + BK - 1) // BK if FLAT else TAPS * BLOCKS):
        lane = tl.arange(0, BK)
        if FLAT:
            k = step * BK + lane  # [BK]
            c, tap = split_window(k, C, TAPS, CHANNELS_LAST)
            kd, kh, kw = split_tap(tl.expand_dims(tap, 1 - PIXELS), KERNEL)
            m_k = k < C * TAPS
        else:
            c, kd, kh, kw = block * BK + lane, t_d, t_h, t_w
            k, m_k = flat_tap(kd, kh, kw, KERNEL) * C + c, c < C
            t_d, t_h, t_w, block = advance(t_d, t_h, t_w, block, 0, 0, 0, 1, KERNEL[1], KERNEL[2], BLOCKS)
        o_x, m_x = input_offset(
            tl.expand_dims(n, PIXELS),
            tl.expand_dims(group * C + c, 1 - PIXELS),
            tl.expand_dims(od, PIXELS),
            tl.expand_dims(oh, PIXELS),
            tl.expand_dims(ow, PIXELS),
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
        m_x = m_x & tl.expand_dims(m_m, PIXELS) & tl.expand_dims(m_k, 1 - PIXELS)
        x = tl.load(p_x + o_x, mask=m_x, other=0.0)
        x = x if CHANNELS_LAST else tl.trans(x)  # [BM, BK]
        o_w = (group * O + o_n)[None, :] * (C * TAPS) + k[:, None]
        w = tl.load(p_w + o_w, mask=m_k[:, None] & m_n[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)

    if p_bias is not None:
        acc += tl.load(p_bias + group * O + o_n, mask=m_n, other=0.0).to(ACC)[None, :]
    return acc


@triton.jit
def conv_fprop_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
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
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[n, o, p] = bias[o] + Σ_{c,k} x[n, c, p·stride − padding + k·dilation] · w[o, c, k]

    A matrix product for each group: rows m = (n, p), columns o, reduction (c, k).  One program computes the tile
    y [BM, BN] from tiles x [BM, BK] and w [BK, BN].  C and O are the channels of one group.

    The grid is (row tiles · column tiles, groups), in the order of `grouped`.
    """
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = grouped(tl.program_id(0), tl.cdiv(N * OD * OH * OW, BM), (O + BN - 1) // BN)
    first = row.to(tl.int64 if WIDE else tl.int32) * BM
    o_n = column.to(first.dtype) * BN + tl.arange(0, BN)  # [BN]
    n, od, oh, ow = split_pixel(first, tl.arange(0, BM), OD, OH, OW)  # [BM]
    m_m, m_n = n < N, o_n < O

    acc = fprop_tile(
        p_x,
        p_w,
        p_bias,
        n,
        od,
        oh,
        ow,
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
    pixel = (od * OH + oh) * OW + ow
    store_pixels(p_y, acc, n, group * O + o_n, pixel, m_m, m_n, groups * O, OD * OH * OW, CHANNELS_LAST)


def conv_fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, memory_format: torch.memory_format
) -> Tensor:
    """y = x ∗ w + bias, with x [N, C, *input], w [O, C/groups, *kernel], bias [O] or None, y [N, O, *output]."""
    y = empty(x, (x.shape[0], w.shape[0], *geometry.output), memory_format, x.dtype)
    if y.numel() == 0:
        return y
    if is_depthwise(w, geometry):
        depthwise_fprop(x, w, bias, y, geometry, memory_format)
        return y
    channels, outputs = w.shape[1], w.shape[0] // geometry.groups
    taps, pixels = math.prod(geometry.kernel), math.prod(geometry.output)
    precision = dot_precision(x)
    wide = needs_int64(x, w, y, slack=configs.MOST_ROWS * y.shape[1])
    x = x.contiguous(memory_format=memory_format)
    bias = bias if bias is None else bias.contiguous()

    def launch(tile: configs.Tile) -> None:
        flat = configs.flattened(tile, channels, taps)
        programs = triton.cdiv(x.shape[0] * pixels, tile.m) * triton.cdiv(outputs, tile.n)
        conv_fprop_kernel[grid(programs, geometry.groups)](
            x,
            laid_out(w, flat, memory_format),
            bias,
            y,
            N=x.shape[0],
            **lifted(geometry),
            MODE=geometry.padding_mode,
            C=channels,
            O=outputs,
            CHANNELS_LAST=is_channels_last(memory_format),
            FLAT=flat,
            WIDE=wide,
            PRECISION=precision,
            ACC=accumulator(x.dtype),
            BM=tile.m,
            BN=tile.n,
            BK=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **all_registers(),
        )

    with on_device_of(x):
        tiles = configs.product_tiles(x.dtype, precision, wide)
        default = configs.product_tile(tiles, x.shape[0], pixels, outputs, geometry.groups, channels, taps)
        tuned("conv_fprop", x, w.shape, geometry, tiles, default, launch, wide, format=memory_format)
    return y
