"""Pooling in plain tensor algebra, for any rank.

What can be done for all windows at once is: one tap of every window is a strided slice of the input, and passes over
slices cost a fraction of a walk through the windows.  Only where windows are fewer than the taps of one, or of
different lengths (global and adaptive pooling), each window is gathered and reduced.  A sum over a window is the sum of
its rows' sums, so averages go one dimension after the other.  Some samples at a time, whose tensors stay in the cache.

A winner is kept as the flat position of its tap in the window (`offset`), one byte for windows of up to 256 elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchconv.eager.slices import (
    axis_pieces,
    divisors,
    first_taps,
    known_starts,
    single_windows,
    tap_pieces,
    window_pieces,
    window_starts,
)
from torchconv.eager.windows import accumulation_dtype, chunks
from torchconv.geometry import AvgGeometry, Axis, PoolGeometry
from torchconv.layout import arranged, memory_format

# Elements of the samples that are pooled at a time: 2 MiB in float32.
_CHUNK = 1 << 19
# How often an element is gathered at most: beyond that, windows that overlap take less time tap by tap, and no memory.
_GATHERS = 64


def max_pool(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y[o] = max over taps k of x[o·s − p + k·d], and the offset of the winning tap.

    Of equal values the first wins; a NaN beats every number, and of several NaNs the last wins.  A window of nothing
    but the lowest value reports its first element inside the input.
    """
    y = _empty(x, geometry.output, format)
    offset = torch.empty_like(y, dtype=offset_dtype(geometry))
    outputs, taps = math.prod(geometry.output), geometry.taps
    by_window = geometry.adaptive or (outputs < taps and outputs * taps <= _GATHERS * math.prod(geometry.input))
    pool, made = (_max_by_window, outputs * taps) if by_window else (_max_by_tap, outputs)
    for part in _chunks(x, geometry, made) if y.numel() else ():
        pool(x[part], y[part], offset[part], geometry)
    return y, offset


def _max_by_tap(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry) -> None:
    """Max pooling into `y` and `offset`, one tap of all windows after the other.

    Comparing is fast only between tensors with a dense last dimension, and with a result of their type: 4 times as fast
    as with booleans.  So a tap's values are copied if the stride scatters them, and the winners are counted in float32.
    (`torch.where` would take 15 times as long as `torch.maximum`.)
    """
    taps = tap_pieces(geometry)
    wins, winner = torch.empty_like(y), torch.empty_like(y, dtype=torch.float32)
    if taps and taps[0].everywhere:
        y.copy_(x[taps[0].inputs])
        winner.fill_(taps[0].number)
    else:
        y.fill_(_lowest(x.dtype))
        winner.copy_(first_taps(geometry))
    for number, outputs, inputs, everywhere in taps[taps[0].everywhere :] if taps else ():
        value = x[inputs]
        if value.stride(-1) != 1 and value.stride(1) != 1:
            value = value.contiguous()
        best, w, k = (y, wins, winner) if everywhere else (y[outputs], wins[outputs], winner[outputs])
        torch.gt(value, best, out=w)
        torch.maximum(best, value, out=best)
        # The taps ascend: of those that were greater than all before them, the last is the winner.
        torch.maximum(k, w.to(k.dtype).mul_(number), out=k)
    offset.copy_(winner)
    if _holds_nan(y):
        for tap in taps:
            offset[tap.outputs] = torch.where(x[tap.inputs].isnan(), tap.number, offset[tap.outputs])


def _max_by_window(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry) -> None:
    """Max pooling into `y` and `offset`: all windows side by side, [N, C, *output, *kernel], and one reduction."""
    taps = tuple(range(2 + geometry.rank, 2 + 2 * geometry.rank))
    values = x.new_full((*y.shape, *geometry.kernel), _lowest(x.dtype))
    for window, inputs in window_pieces(geometry):
        values[window] = x[inputs]
    numbers = torch.arange(geometry.taps, dtype=torch.float32).view(geometry.kernel)
    greatest = values.amax(taps, keepdim=True)
    # The first of the taps that hold it is the greatest number, if they are counted from the last one.
    holds = torch.eq(values, greatest, out=torch.empty_like(values)).to(torch.float32)
    winner = geometry.taps - holds.mul_(geometry.taps - numbers).amax(taps)
    y.copy_(greatest.view(y.shape))
    if _holds_nan(y):
        winner = torch.where(y.isnan(), (values.isnan() * numbers).amax(taps), winner)
    # Where even the greatest is the lowest value, the first tap that holds it may lie in the padding.
    offset.copy_(torch.maximum(winner, first_taps(geometry)))


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = x[winner of window o]: the derivative of max pooling, as a linear map.  A window without input gives 0."""
    index, full = _winners(offset, geometry)
    y = _flat(x, format).gather(_pixels(format), _flat(index, format))
    if full is not None:
        y *= _flat(full.expand(index.shape), format)
    return _unflat(y, geometry.output, format)


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] over the windows o whose winner is i: the adjoint of `max_pool_gather`."""
    x = _empty(g, geometry.input, format)
    flat, dtype = _flat(x, format), accumulation_dtype(g.dtype)
    if g.numel() == 0:
        return x.zero_()
    for part in _chunks(g, geometry):
        index, full = _winners(offset[part], geometry)
        share = g[part] if full is None else g[part] * full
        total = flat[part].zero_() if dtype == g.dtype else torch.zeros_like(flat[part], dtype=dtype)
        total.scatter_add_(_pixels(format), _flat(index, format), _flat(share, format).to(dtype))
        if dtype != g.dtype:
            flat[part] = total
    return x


def _flat(t: Tensor, format: torch.memory_format) -> Tensor:
    """[N, C, *] as [N, C, pixels]; if channels_last, as [N, pixels, C]: a view if `t` is in that format."""
    return t.flatten(2) if format == torch.contiguous_format else t.movedim(1, -1).flatten(1, -2)


def _unflat(t: Tensor, spatial: tuple[int, ...], format: torch.memory_format) -> Tensor:
    """The inverse of `_flat`, in that format."""
    contiguous = format == torch.contiguous_format
    return arranged(t.unflatten(2, spatial) if contiguous else t.unflatten(1, spatial).movedim(-1, 1), format)


def _pixels(format: torch.memory_format) -> int:
    """The dimension of `_flat`'s pixels."""
    return 2 if format == torch.contiguous_format else 1


def avg_pool(x: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = Σ_k x[o·s − p + k·d] / divisor[o]."""
    y = _empty(x, geometry.output, format)
    for part in _chunks(x, geometry) if y.numel() else ():
        total = x[part].to(accumulation_dtype(x.dtype))
        single, others = single_windows(geometry)
        if single.dims:
            total = total[single.inputs].sum(single.dims, keepdim=True)
        for dim, axis in others:
            total = _sum(total, dim, axis)
        _divide(total, geometry, out=y[part])
    return y


def avg_pool_grad(g: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] / divisor[o] over the windows o that hold i: the adjoint of `avg_pool`."""
    x = _empty(g, geometry.input, format)
    if g.numel() == 0:
        return x.zero_()
    for part in _chunks(g, geometry):
        share = g[part].to(accumulation_dtype(g.dtype))
        share = _divide(share, geometry, out=torch.empty_like(share))
        for dim in reversed(range(1, geometry.rank)):
            share = _spread(share, 2 + dim, geometry.axes[dim], out=None)
        last = _spread(share, 2, geometry.axes[0], out=x[part] if share.dtype == x.dtype else None)
        if share.dtype != x.dtype:
            x[part] = last
    return x


def _sum(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The sums of `x` over the windows of one dimension."""
    pieces = axis_pieces(axis, dim, x.dim())
    if pieces.by_window:
        return torch.cat([x[inputs].sum(dim, keepdim=True) for _, inputs, _ in pieces.all], dim)
    whole = [x[inputs] for _, inputs, everywhere in pieces.all if everywhere]
    size = (*x.shape[:dim], axis.output, *x.shape[dim + 1 :])
    y = whole[0] + whole[1] if len(whole) > 1 else whole[0].clone() if whole else x.new_zeros(size)
    for value in whole[2:]:
        y += value
    for outputs, inputs, everywhere in pieces.all:
        if not everywhere:
            y[outputs] += x[inputs]
    return y


def _spread(g: Tensor, dim: int, axis: Axis, out: Tensor | None) -> Tensor:
    """The adjoint of `_sum`: each element of `g` to all positions of its window."""
    pieces = axis_pieces(axis, dim, g.dim())
    x = g.new_empty((*g.shape[:dim], axis.input, *g.shape[dim + 1 :])) if out is None else out
    if pieces.tile:
        for outputs, inputs, _ in pieces.all:
            x[inputs] = g[outputs]
        return x
    x.zero_()
    for outputs, inputs, _ in pieces.all:
        x[inputs] += g[outputs]
    return x


def offset_dtype(geometry: PoolGeometry) -> torch.dtype:
    """One byte per winner where it suffices."""
    return torch.uint8 if geometry.taps <= 256 else torch.int32


def winner_index(offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """The winners as torch reports them: int64 positions in the flattened input, [N, C, *output] as `offset`."""
    return arranged(_positions(offset.long(), geometry, window_starts(geometry, offset.device)), memory_format(offset))


def _positions(offset: Tensor, geometry: PoolGeometry, starts: Tensor) -> Tensor:
    """The positions in the flattened input of taps of windows whose first taps are at `starts`, int64.

    If a tap of dimension d steps over u_d positions, the tap of digits t_d lies Σ t_d·u_d behind the window's start.
    The quotients q_d = offset // Π kernel behind d are at hand, and t_d = q_d − kernel_d · q_{d−1}.
    """
    quotient, pixels, carried, behind = offset, 1, 0, None
    for dim in reversed(range(geometry.rank)):
        step = pixels * geometry.dilation[dim]
        behind = quotient * step if behind is None else behind + quotient * (step - carried)
        carried, pixels = geometry.kernel[dim] * step, pixels * geometry.input[dim]
        if dim:
            quotient = _quotient(quotient, geometry.kernel[dim], geometry.taps)
    return (behind.to(starts.dtype) + starts).long()  # type: ignore[union-attr]


def _quotient(t: Tensor, divisor: int, limit: int) -> Tensor:
    """t // divisor for 0 ≤ t < limit; for small numbers as a product, 8 times as fast."""
    if limit <= 256:
        # In 16 bits no more than needed; else a constant, for the sizes of a traced adaptive window are symbols.
        bits = (limit * divisor).bit_length() if t.dtype == torch.int16 else 16
        return (t * (2**bits // divisor + 1)) >> bits  # exact, because t · divisor < 2^bits
    return torch.div(t, divisor, rounding_mode="floor")


def _winners(offset: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor | None]:
    """`winner_index`; and [*output] whether a window holds any input, else its winner is position 0; None if all do."""
    starts, full = known_starts(geometry)
    index = _positions(offset.to(_narrow_dtype(geometry)), geometry, starts)
    return (index, None) if full is None else (index.mul_(full), full)


def _narrow_dtype(geometry: PoolGeometry) -> torch.dtype:
    """A type that holds what `_positions` computes of a window: half the bytes take half the time."""
    steps = [d * math.prod(geometry.input[dim:]) for dim, d in enumerate(geometry.dilation, start=1)]
    span = sum((k - 1) * step for k, step in zip(geometry.kernel, steps))
    if max(span, *steps) < 2**15 and geometry.taps <= 120:  # `_quotient` computes up to 2·taps² + taps
        return torch.int16
    return torch.int32 if math.prod(geometry.input) < 2**31 else torch.int64


def _divide(total: Tensor, geometry: AvgGeometry, out: Tensor) -> Tensor:
    """`total` by each window's divisor; integers truncate, as C does."""
    return torch.div(total, divisors(geometry), rounding_mode=None if total.is_floating_point() else "trunc", out=out)


def _lowest(dtype: torch.dtype) -> float:
    return -float("inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _holds_nan(t: Tensor) -> bool:
    """Whether the sum is NaN, which a NaN makes it (and infinities of both signs, too)."""
    return t.is_floating_point() and bool(t.sum().isnan())


def _empty(like: Tensor, spatial: tuple[int, ...], format: torch.memory_format) -> Tensor:
    size = (*like.shape[:2], *spatial)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def _chunks(x: Tensor, geometry: PoolGeometry, made: int = 0) -> list[slice]:
    """Slices of the batch, each of about `_CHUNK` elements and at least one sample.

    A channel counts with its input, its output or what is `made` of it on the way, whichever is most.
    """
    elements = max(math.prod(geometry.input), math.prod(geometry.output), made)
    return chunks(x.shape[0], x.shape[1] * elements, _CHUNK)
