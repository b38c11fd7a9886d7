"""dgrad: the gradient of a convolution's input, which is also the transposed convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import configs
from triton_kernels.conv_depthwise import depthwise_dgrad, is_depthwise
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
    three,
)
from triton_kernels.tiles import (
    advance,
    flat_tap,
    grouped,
    load_gradient,
    split_pixel,
    split_tap,
    store_pixels,
    window_offset,
    within,
    zeros4,
)
from triton_kernels.tuning import tuned


@triton.jit
def residue_taps(
    r,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
):
    """The taps k0, k0 + STEP, … that reach the input positions i ≡ r (mod S) of one dimension.

    A tap k meets position i in the window of output (i + P − k·D) / S, if that is a whole number.  Returns k0, how many
    such taps there are, and the output that k0 meets position r in; the next tap meets it STEP·D/S outputs earlier.
    """
    k0 = 0 * r + K
    for k in tl.static_range(STEP):
        # S·K·D more keeps the remainder from being taken of a negative number.
        reaches = (r + P - k * D + S * K * D) % S == 0
        k0 = tl.where(reaches, tl.minimum(k0, k), k0)
    return k0, tl.maximum(K - k0 + STEP - 1, 0) // STEP, (r + P - k0 * D + S * K * D) // S - K * D


@triton.jit
def conv_dgrad_kernel(
    p_g,
    p_winner,
    p_w,
    p_bias,
    p_x,
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
    STEP: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """x̄[n, c, i] = bias[c] + Σ_{o,k} g[n, o, (i + padding − k·dilation) / stride] · w[o, c, k], whole quotients only

    Input positions of one residue class i mod stride are reached by the same taps, every one of which meets a whole
    output position: each class is a dense convolution of g at stride 1, and no multiply is spent on the holes between.
    A class that no tap reaches gets the bias alone.  With `p_winner`, g is given through its pooling: `load_gradient`.

    For a class and a group: rows m = (n, i), columns c, reduction (o, k).  One program computes the tile x̄ [BM, BN]
    from tiles g [BM, BK] and w [BK, BN].  C and O are the channels of one group.  The grid is (classes · row tiles ·
    column tiles, groups), each class in the order of `grouped`.  The reduction is walked as in `fprop_tile`.
    """
    COLUMN_TILES: tl.constexpr = (C + BN - 1) // BN
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    # Positions per class and dimension; the last ones of a class may lie beyond the input.
    QD, QH, QW = tl.cdiv(ID, STRIDE[0]), tl.cdiv(IH, STRIDE[1]), tl.cdiv(IW, STRIDE[2])
    row_tiles = tl.cdiv(N * QD * QH * QW, BM)
    pid, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    residue = pid // (row_tiles * COLUMN_TILES)
    row, column = grouped(pid - residue * (row_tiles * COLUMN_TILES), row_tiles, COLUMN_TILES)
    rd, rh, rw = split_tap(residue, STRIDE)
    kd0, taps_d, od0 = residue_taps(rd, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], STEP[0])
    kh0, taps_h, oh0 = residue_taps(rh, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], STEP[1])
    kw0, taps_w, ow0 = residue_taps(rw, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], STEP[2])

    first = row.to(tl.int64 if WIDE else tl.int32) * BM
    o_n = column.to(first.dtype) * BN + tl.arange(0, BN)  # [BN]
    n, qd, qh, qw = split_pixel(first, tl.arange(0, BM), QD, QH, QW)  # [BM]
    i_d, i_h, i_w = qd * STRIDE[0] + rd, qh * STRIDE[1] + rh, qw * STRIDE[2] + rw
    m_m, m_n = (n < N) & (i_d < ID) & (i_h < IH) & (i_w < IW), o_n < C

    # The lanes of a warp lie along the last dimension: what is innermost in memory comes last, and is turned round.
    PIXELS: tl.constexpr = 1 if CHANNELS_LAST else 0
    acc = tl.zeros([BM, BN], dtype=ACC)
    BLOCKS: tl.constexpr = (O + BK - 1) // BK
    taps = taps_d * taps_h * taps_w
    t_d, t_h, t_w, block = zeros4()
    for step in range(tl.cdiv(O * taps, BK) if FLAT else BLOCKS * taps):
        lane = tl.arange(0, BK)
        if FLAT:
            k = step * BK + lane  # [BK]
            o, tap, m_k = k % O, k // O, k < O * taps
            td, th, tw = tap // (taps_w * taps_h), tap // taps_w % taps_h, tap % taps_w
            k_w = flat_tap(kd0 + td * STEP[0], kh0 + th * STEP[1], kw0 + tw * STEP[2], KERNEL)[:, None]
            td, th, tw = tl.expand_dims(td, 1 - PIXELS), tl.expand_dims(th, 1 - PIXELS), tl.expand_dims(tw, 1 - PIXELS)
        else:
            o, td, th, tw = block * BK + lane, t_d, t_h, t_w
            m_k = o < O
            k_w = flat_tap(kd0 + td * STEP[0], kh0 + th * STEP[1], kw0 + tw * STEP[2], KERNEL)
            t_d, t_h, t_w, block = advance(t_d, t_h, t_w, block, 0, 0, 0, 1, taps_h, taps_w, BLOCKS)
        back_d = td * (STEP[0] * DILATION[0] // STRIDE[0])
        back_h = th * (STEP[1] * DILATION[1] // STRIDE[1])
        back_w = tw * (STEP[2] * DILATION[2] // STRIDE[2])
        od = tl.expand_dims(qd + od0, PIXELS) - back_d
        oh = tl.expand_dims(qh + oh0, PIXELS) - back_h
        ow = tl.expand_dims(qw + ow0, PIXELS) - back_w
        m_g = within(od, OD, KERNEL[0] * STRIDE[0] * DILATION[0] == 1 and PADDING[0] == 0)
        m_g = m_g & within(oh, OH, KERNEL[1] * STRIDE[1] * DILATION[1] == 1 and PADDING[1] == 0)
        m_g = m_g & within(ow, OW, KERNEL[2] * STRIDE[2] * DILATION[2] == 1 and PADDING[2] == 0)
        m_g = m_g & tl.expand_dims(m_m, PIXELS) & tl.expand_dims(m_k, 1 - PIXELS)
        g = load_gradient(
            p_g,
            p_winner,
            tl.expand_dims(n, PIXELS),
            tl.expand_dims(group * O + o, 1 - PIXELS),
            od,
            oh,
            ow,
            groups * O,
            OD,
            OH,
            OW,
            m_g,
            POOL,
            CHANNELS_LAST,
        )
        g = g if CHANNELS_LAST else tl.trans(g)  # [BM, BK]
        o_w = (group * O + o).to(first.dtype)[:, None] * (C * TAPS) + window_offset(
            o_n[None, :], k_w, C, TAPS, CHANNELS_LAST or not FLAT
        )
        w = tl.load(p_w + o_w, mask=m_k[:, None] & m_n[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(g, w, acc, input_precision=PRECISION, out_dtype=ACC)

    if p_bias is not None:
        acc += tl.load(p_bias + group * C + o_n, mask=m_n, other=0.0).to(ACC)[None, :]
    pixel = (i_d * IH + i_h) * IW + i_w
    store_pixels(p_x, acc, n, group * C + o_n, pixel, m_m, m_n, groups * C, ID * IH * IW, CHANNELS_LAST)


def conv_dgrad(
    g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, memory_format: torch.memory_format
) -> Tensor:
    """x̄ = g ⊛ flip(w) + bias, with g [N, O, *output], w [O, C/groups, *kernel], bias [C] or None, x̄ [N, C, *input]."""
    return launch_dgrad(g, None, w, bias, geometry, (), memory_format)


def launch_dgrad(
    g: Tensor,
    winner: Tensor | None,
    w: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    pool: Sequence[int],
    memory_format: torch.memory_format,
) -> Tensor:
    """`conv_dgrad`, of a gradient that is given through its pooling by `pool` if there are winners."""
    channels, outputs = w.shape[1], w.shape[0] // geometry.groups
    x = empty(g, (g.shape[0], channels * geometry.groups, *geometry.input), memory_format, g.dtype)
    if x.numel() == 0:
        return x
    if is_depthwise(w, geometry):
        depthwise_dgrad(g, winner, w, bias, x, geometry, pool, memory_format)
        return x
    arguments = lifted(geometry)
    strides, dilations = arguments["STRIDE"], arguments["DILATION"]
    sizes = (arguments["ID"], arguments["IH"], arguments["IW"])
    class_pixels = math.prod(triton.cdiv(size, s) for size, s in zip(sizes, strides))
    precision = dot_precision(g)
    wide = needs_int64(g, w, x, slack=configs.MOST_ROWS * math.prod(strides) * x.shape[1])
    # Taps that reach a class, one with another.
    class_taps = triton.cdiv(math.prod(geometry.kernel), math.prod(strides))
    g = g.contiguous(memory_format=memory_format)
    winner = winner if winner is None else winner.contiguous(memory_format=memory_format)
    bias = bias if bias is None else bias.contiguous()

    def launch(tile: configs.Tile) -> None:
        flat = configs.flattened(tile, outputs, class_taps)
        row_tiles = triton.cdiv(g.shape[0] * class_pixels, tile.m)
        programs = math.prod(strides) * row_tiles * triton.cdiv(channels, tile.n)
        conv_dgrad_kernel[grid(programs, geometry.groups)](
            g,
            winner,
            laid_out(w, flat, memory_format),
            bias,
            x,
            N=g.shape[0],
            **arguments,
            C=channels,
            O=outputs,
            POOL=three(pool, 1),
            # Tap k reaches a class if k·dilation ≡ r + padding (mod stride): every STEP-th tap does, or none.
            STEP=tuple(s // math.gcd(s, d) for s, d in zip(strides, dilations)),
            CHANNELS_LAST=is_channels_last(memory_format),
            FLAT=flat,
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
        tiles = configs.product_tiles(g.dtype, precision, wide)
        pixels = class_pixels * math.prod(strides)
        default = configs.product_tile(tiles, g.shape[0], pixels, channels, geometry.groups, outputs, class_taps)
        details = {"pool": pool, "format": memory_format}
        tuned("conv_dgrad", g, w.shape, geometry, tiles, default, launch, wide, **details)
    return x
