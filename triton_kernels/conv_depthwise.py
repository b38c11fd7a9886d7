"""Depthwise convolution: every group has one input channel, so there is no matrix to multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    is_channels_last,
    lifted,
    needs_int64,
    on_device_of,
    three,
    warps,
)
from triton_kernels.splits import add_splits, partial_sums
from triton_kernels.tiles import (
    advance,
    channel_offset,
    flat_tap,
    input_pixel,
    load_gradient,
    padded_position,
    split_pixel,
    split_tap,
)

# With so many outputs per input channel, or taps, the matrix product of the other kernels wastes less.
_OUTPUTS, _TAPS = 16, 64


def is_depthwise(w: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the kernels of this file are to compute a convolution with weight `w`."""
    outputs = w.shape[0] // geometry.groups
    return geometry.groups > 1 and w.shape[1] == 1 and outputs < _OUTPUTS and math.prod(geometry.kernel) <= _TAPS


# A tile has BK pixels of BN channels, [BK, BN] in channels_last and [BN, BK] in contiguous tensors: what lies side by
# side in memory goes to threads side by side.  Of contiguous tensors that is one pixel each.  Where the compiler knows
# rows to be aligned, it would give a thread eight.  A tap shifts them, so they are loaded one by one, each thread's far
# from the next one's.  Therefore it is not told what divides LENGTH.
_jit = triton.jit(do_not_specialize=["LENGTH"])


@triton.jit
def tile_lanes(tile, BK: tl.constexpr, BN: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Pixels and channels of a program's tile: [BK, 1] and [1, BN], or [1, BK] and [BN, 1]."""
    lane, c = tl.arange(0, BK), tile * BN + tl.arange(0, BN)
    if CHANNELS_LAST:
        return lane[:, None], c[None, :]
    else:  # noqa: RET505 - the compiler drops one branch only if there are two
        return lane[None, :], c[:, None]


@_jit
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
    LENGTH,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    UNROLL: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """y[n, o, p] = bias[o] + Σ_k x[n, o // OUTPUTS, p·stride − padding + k·dilation] · w[o, k]

    One program walks over LENGTH pixels (n, p) of BN channels, and computes BK of them in each step: what the windows
    of neighbouring rows share is still in its cache when the next row comes.  The grid is walks · channel tiles, tiles
    fastest, so that programs which run together share lines of memory.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tiles = tl.cdiv(O, BN)
    lane, o = tile_lanes(tl.program_id(0) % tiles, BK, BN, CHANNELS_LAST)
    m_o = o < O
    start = (tl.program_id(0) // tiles).to(tl.int64 if WIDE else tl.int32) * LENGTH
    n, od, oh, ow = split_pixel(start, lane, OD, OH, OW)
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1, 1], tl.int32), OD, OH, OW)
    for _ in range(0, LENGTH, BK):
        m = (n < N) & m_o
        acc = tl.zeros([BK, BN] if CHANNELS_LAST else [BN, BK], dtype=ACC)
        if p_bias is not None:
            acc += tl.load(p_bias + o, mask=m_o, other=0.0).to(ACC)
        for kd in range(KERNEL[0]):
            i_d = padded_position(od * STRIDE[0] - PADDING[0] + kd * DILATION[0], ID, MODE)
            for kh in range(KERNEL[1]):
                i_h = padded_position(oh * STRIDE[1] - PADDING[1] + kh * DILATION[1], IH, MODE)
                inside = (i_d >= 0) & (i_d < ID) & (i_h >= 0) & (i_h < IH)
                for kw in tl.range(KERNEL[2], loop_unroll_factor=UNROLL):
                    i_w = padded_position(ow * STRIDE[2] - PADDING[2] + kw * DILATION[2], IW, MODE)
                    pixel = (i_d * IH + i_h) * IW + i_w
                    o_x = channel_offset(n, o // OUTPUTS, pixel, O // OUTPUTS, ID * IH * IW, CHANNELS_LAST)
                    x = tl.load(p_x + o_x, mask=m & (inside & (i_w >= 0) & (i_w < IW)), other=0.0)
                    w = tl.load(p_w + o * TAPS + flat_tap(kd, kh, kw, KERNEL), mask=m_o, other=0.0)
                    acc += x.to(ACC) * w.to(ACC)
        o_y = channel_offset(n, o, (od * OH + oh) * OW + ow, O, OD * OH * OW, CHANNELS_LAST)
        tl.store(p_y + o_y, acc.to(p_y.dtype.element_ty), mask=m)
        n, od, oh, ow = advance(n, od, oh, ow, step_n, step_d, step_h, step_w, OD, OH, OW)


@triton.jit
def tap_between(
    i,
    t,
    OUTPUTS,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    APART: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """The t-th pair of an output o and a tap k that meet input position i of one dimension, and whether there is one.

    o·S − P + k·D = i.  Such taps lie APART = S / gcd(S, D), and INVERSE is that of D / gcd(S, D) modulo APART.  Where
    every tap is one, it is the same for all positions: a number, by which the weights are loaded once for all.
    """
    GCD: tl.constexpr = S // APART
    k = t
    if APART > 1:
        k = (i + P) // GCD % APART * INVERSE % APART + t * APART
    rest = i + P - k * D
    o = rest // S
    return o, k, (rest >= 0) & (rest % S == 0) & (o < OUTPUTS)


@_jit
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
    LENGTH,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    APART: tl.constexpr,
    INVERSE: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    UNROLL: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """x̄[n, c, i] = bias[c] + Σ_{o,k} g[n, o, (i + padding − k·dilation) / stride] · w[o, k], o // OUTPUTS = c

    A gather: each pixel asks the windows that hold it, in a fixed order.  Programs walk over pixels (n, i) as those of
    fprop do over (n, p).  With `p_winner`, g is given through its pooling: `load_gradient`.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tiles = tl.cdiv(C, BN)
    lane, c = tile_lanes(tl.program_id(0) % tiles, BK, BN, CHANNELS_LAST)
    m_c = c < C
    start = (tl.program_id(0) // tiles).to(tl.int64 if WIDE else tl.int32) * LENGTH
    n, i_d, i_h, i_w = split_pixel(start, lane, ID, IH, IW)
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1, 1], tl.int32), ID, IH, IW)
    for _ in range(0, LENGTH, BK):
        m = (n < N) & m_c
        acc = tl.zeros([BK, BN] if CHANNELS_LAST else [BN, BK], dtype=ACC)
        if p_bias is not None:
            acc += tl.load(p_bias + c, mask=m_c, other=0.0).to(ACC)
        for step in range(tl.cdiv(KERNEL[0], APART[0]) * OUTPUTS):
            o = c * OUTPUTS + step % OUTPUTS
            od, kd, m_d = tap_between(
                i_d, step // OUTPUTS, OD, STRIDE[0], PADDING[0], DILATION[0], APART[0], INVERSE[0]
            )
            for th in range(tl.cdiv(KERNEL[1], APART[1])):
                oh, kh, m_h = tap_between(i_h, th, OH, STRIDE[1], PADDING[1], DILATION[1], APART[1], INVERSE[1])
                for tw in tl.range(tl.cdiv(KERNEL[2], APART[2]), loop_unroll_factor=UNROLL):
                    ow, kw, m_w = tap_between(i_w, tw, OW, STRIDE[2], PADDING[2], DILATION[2], APART[2], INVERSE[2])
                    m_k = (kd < KERNEL[0]) & (kh < KERNEL[1]) & (kw < KERNEL[2])
                    m_g = m & (m_d & m_h & m_w & m_k)
                    g = load_gradient(
                        p_g, p_winner, n, o, od, oh, ow, C * OUTPUTS, OD, OH, OW, m_g, POOL, CHANNELS_LAST
                    )
                    o_w = o * TAPS + flat_tap(kd, kh, kw, KERNEL)
                    acc += g.to(ACC) * tl.load(p_w + o_w, mask=m_c & m_k, other=0.0).to(ACC)
        o_x = channel_offset(n, c, (i_d * IH + i_h) * IW + i_w, C, ID * IH * IW, CHANNELS_LAST)
        tl.store(p_x + o_x, acc.to(p_x.dtype.element_ty), mask=m)
        n, i_d, i_h, i_w = advance(n, i_d, i_h, i_w, step_n, step_d, step_h, step_w, ID, IH, IW)


@_jit
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
    BT: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """w̄[o, k] = Σ_{n,p} g[n, o, p] · x[n, o // OUTPUTS, p·stride − padding + k·dilation], and b̄[o] = Σ_{n,p} g[n, o, p]

    One program walks over the LENGTH pixels (n, p) of its split for BN channels, once for every BT taps.  Each thread
    sums its own elements of the tile, in acc [BT, BK, BN] or [BT, BN, BK], and threads add theirs at the end.  The bias
    is one more tap, to which all of x is ones.  `p_partial` is as in `conv_wgrad_kernel`.  The grid is (channel tiles,
    splits).
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    split = tl.program_id(1)
    start = split.to(tl.int64 if WIDE else tl.int32) * LENGTH
    lane, o = tile_lanes(tl.program_id(0), BK, BN, CHANNELS_LAST)
    lane, o = lane[None, :, :], o[None, :, :]
    step_n, step_d, step_h, step_w = split_pixel(BK, tl.zeros([1, 1, 1], tl.int32), OD, OH, OW)
    p_partial += split.to(tl.int64) * (O * TAPS + O if BIAS else O * TAPS)
    for first in tl.static_range(0, TAPS + BIAS, BT):
        tap = first + tl.arange(0, BT)[:, None, None]
        kd, kh, kw = split_tap(tap, KERNEL)
        n, od, oh, ow = split_pixel(start, lane, OD, OH, OW)
        acc = tl.zeros([BT, BK, BN] if CHANNELS_LAST else [BT, BN, BK], dtype=ACC)
        for _ in range(0, LENGTH, BK):
            m = (n < N) & (o < O)
            g = load_gradient(p_g, p_winner, n, o, od, oh, ow, O, OD, OH, OW, m, POOL, CHANNELS_LAST)
            pixel, inside = input_pixel(od, oh, ow, kd, kh, kw, ID, IH, IW, STRIDE, PADDING, DILATION, MODE)
            o_x = channel_offset(n, o // OUTPUTS, pixel, O // OUTPUTS, ID * IH * IW, CHANNELS_LAST)
            x = tl.load(p_x + o_x, mask=m & (inside & (tap < TAPS)), other=0.0)
            acc += g.to(ACC) * tl.where(tap == TAPS, 1.0, x.to(ACC))
            n, od, oh, ow = advance(n, od, oh, ow, step_n, step_d, step_h, step_w, OD, OH, OW)
        o_t, o_n = first + tl.arange(0, BT)[:, None], tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
        o_w = tl.where(o_t < TAPS, o_n * TAPS + o_t, O * TAPS + o_n)
        tl.store(p_partial + o_w, tl.sum(acc, axis=1 if CHANNELS_LAST else 2), mask=(o_t < TAPS + BIAS) & (o_n < O))


# Bytes of channels side by side that a program takes: the least that a GPU moves.  Of contiguous tensors it takes so
# many channels, which share the arithmetic of the pixels.
_SECTOR, _PLANES = 32, 4
# Pixels of a step of fprop and dgrad, and threads: in channels_last each has 16 bytes of four pixels.
_PIXELS, _THREADS = 256, 128
# Rows of a window up to so long are unrolled: so many loads at once, and the registers for them.
_UNROLLED = 4
# For so many taps at once a thread of wgrad keeps sums; for half as many where output channels share an input channel,
# which is then loaded by elements, each with an address of its own.
_SUMS = 16


def tile_channels(channels: int, dtype: torch.dtype, memory_format: torch.memory_format) -> int:
    """How many of the channels a program takes."""
    most = _SECTOR // dtype.itemsize if is_channels_last(memory_format) else _PLANES
    return min(most, triton.next_power_of_2(channels))


def walk_length(pixels: int, tiles: int, size: Sequence[int], reach: Sequence[int]) -> int:
    """How many pixels one program of fprop or dgrad walks over: a function of the shape alone.

    Args:
        pixels: of all samples, `size` each.
        tiles: how many tiles of channels there are.
        reach: how many planes, rows and columns apart two pixels may be that need one operand.
    """
    (d, h, w), (planes, rows, columns) = three(size, 1), three(reach, 0)
    # So many pixels after its own would need what a program reads.  An eighth is little; but programs are to be enough.
    beyond = (min(planes, d - 1) * h + min(rows, h - 1)) * w + min(columns, w - 1)
    enough = triton.cdiv(pixels * tiles, configs.SPLIT_PROGRAMS)
    return max(1, triton.cdiv(min(8 * beyond, enough), _PIXELS)) * _PIXELS


def needs_wide_walks(x: Tensor, y: Tensor, pixels: int, length: int) -> bool:
    """`needs_int64` of walks, the last of which may go on for `length` pixels after the last sample, `pixels` each."""
    samples = length // pixels + 1
    return any(needs_int64(t, slack=samples * math.prod(t.shape[1:])) for t in (x, y))


def _walk(
    kernel: Any,
    operands: Sequence[Tensor | None],
    result: Tensor,
    geometry: ConvGeometry,
    reach: Sequence[int],
    memory_format: torch.memory_format,
    **arguments: Any,
) -> None:
    """Launch fprop or dgrad, whose programs walk over `result`; of no input, the result is zero."""
    source = operands[0]
    assert source is not None
    if source.numel() == 0:
        result.zero_()
    if source.numel() == 0 or result.numel() == 0:
        return
    samples, channels, *size = result.shape
    width = tile_channels(channels, result.dtype, memory_format)
    tiles, pixels = triton.cdiv(channels, width), samples * math.prod(size)
    length = walk_length(pixels, tiles, size, reach)
    wide = needs_wide_walks(source, result, math.prod(size), length)
    unrolled = geometry.kernel[-1] <= _UNROLLED and arguments["OUTPUTS"] == 1 and not wide
    with on_device_of(result):
        kernel[(tiles * triton.cdiv(pixels, length),)](
            *operands,
            result,
            N=samples,
            **lifted(geometry),
            **arguments,
            LENGTH=length,
            CHANNELS_LAST=is_channels_last(memory_format),
            WIDE=wide,
            ACC=accumulator(result.dtype),
            UNROLL=geometry.kernel[-1] if unrolled else 1,
            BK=_PIXELS,
            BN=width,
            num_warps=warps(_THREADS),
            **all_registers(),
        )


def depthwise_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format,
) -> None:
    """y [N, O, *output] of x [N, C, *input] and w [O, 1, *kernel], groups = C."""
    _walk(
        depthwise_fprop_kernel,
        (x.contiguous(memory_format=memory_format), w.contiguous(), bias if bias is None else bias.contiguous()),
        y,
        geometry,
        [n - 1 for n in cover(geometry)],
        memory_format,
        O=w.shape[0],
        OUTPUTS=w.shape[0] // geometry.groups,
        MODE=geometry.padding_mode,
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
    stride, dilation = three(geometry.stride, 1), three(geometry.dilation, 1)
    apart = tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation))
    _walk(
        depthwise_dgrad_kernel,
        (
            g.contiguous(memory_format=memory_format),
            winner if winner is None else winner.contiguous(memory_format=memory_format),
            w.contiguous(),
            bias if bias is None else bias.contiguous(),
        ),
        x,
        geometry,
        [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilation)],
        memory_format,
        C=geometry.groups,
        OUTPUTS=w.shape[0] // geometry.groups,
        APART=apart,
        INVERSE=tuple(pow(d // math.gcd(s, d), -1, a) for s, d, a in zip(stride, dilation, apart)),
        POOL=three(pool, 1),
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
    channels, outputs = g.shape[1], g.shape[1] // geometry.groups
    size, taps = math.prod(geometry.output), math.prod(geometry.kernel) + (bias.numel() > 0)
    width = tile_channels(channels, g.dtype, memory_format)
    tiles = triton.cdiv(channels, width)
    # 16 bytes of each thread, but of contiguous tensors, which are loaded by elements, not more than four.
    step = _THREADS * min(16 // g.element_size(), 8 if is_channels_last(memory_format) else 4) // width
    enough = triton.cdiv(g.shape[0] * size * tiles, configs.SPLIT_PROGRAMS)
    length = triton.cdiv(max(enough, configs.SPLIT_LENGTH), step) * step
    splits = max(1, triton.cdiv(g.shape[0] * size, length))
    partial = partial_sums(splits, w, bias)
    with on_device_of(g):
        depthwise_wgrad_kernel[(tiles, splits)](
            x.contiguous(memory_format=memory_format),
            g.contiguous(memory_format=memory_format),
            winner if winner is None else winner.contiguous(memory_format=memory_format),
            partial,
            N=g.shape[0],
            O=channels,
            **lifted(geometry),
            LENGTH=length,
            OUTPUTS=outputs,
            MODE=geometry.padding_mode,
            BIAS=bias.numel() > 0,
            POOL=three(pool, 1),
            CHANNELS_LAST=is_channels_last(memory_format),
            WIDE=needs_wide_walks(x, g, size, length),
            ACC=accumulator(g.dtype),
            BT=min(_SUMS if outputs == 1 else _SUMS // 2, triton.next_power_of_2(taps)),
            BK=step,
            BN=width,
            num_warps=warps(_THREADS),
            **all_registers(),
        )
        add_splits(partial, w, bias)
