"""Pooling in plain tensor algebra, for any rank.

What can be done for all windows at once is: one tap of every window is a strided slice of the input, and passes over
slices cost a fraction of a walk through the windows.  Only where windows are fewer than the taps of one (global and
most adaptive pooling), one window after the other is reduced.  A sum over a window is the sum of its rows' sums, so
averages go one dimension after the other.  Some samples at a time are pooled, whose tensors stay in the cache.

A winner is kept as the flat position of its tap in the window (`offset`), one byte for windows of up to 256 elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchconv.eager.slices import axis_pieces, first_taps, tap_pieces, window_pieces
from torchconv.eager.windows import accumulation_dtype
from torchconv.geometry import AvgGeometry, Axis, PoolGeometry
from torchconv.layout import arranged, memory_format

# Elements of the samples that are pooled at a time: 2 MiB in float32.
_CHUNK = 1 << 19


def max_pool(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y[o] = max over taps k of x[o·s − p + k·d], and the offset of the winning tap.

    Of equal values the first wins; a NaN beats every number, and of several NaNs the last wins.  A window of nothing
    but the lowest value reports its first element inside the input.
    """
    y = _empty(x, geometry.output, format)
    offset = torch.empty_like(y, dtype=offset_dtype(geometry))
    pool = _max_by_window if math.prod(geometry.output) < geometry.taps else _max_by_tap
    for part in _chunks(x, geometry) if y.numel() else ():
        pool(x[part], y[part], offset[part], geometry)
    return y, offset


def _max_by_tap(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry) -> None:
    """Max pooling into `y` and `offset`, one tap of all windows after the other.

    Comparing is fast only between dense tensors, and with a result of their type: 4 times as fast as with booleans.  So
    each tap's values are copied, and the winners are counted in float32.  (`torch.where` takes 15 times as long as
    `torch.maximum`.)
    """
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    value, wins = torch.empty_like(y), torch.empty_like(y)
    taps = tap_pieces(geometry)
    y.fill_(lowest)
    winner = torch.empty_like(y, dtype=torch.float32).copy_(first_taps(geometry))
    for tap, outputs, inputs, everywhere in taps:
        if everywhere:
            value.copy_(x[inputs])
        else:
            value.fill_(lowest)[outputs] = x[inputs]
        torch.gt(value, y, out=wins)
        torch.maximum(y, value, out=y)
        # The taps ascend: of those that were greater than all before them, the last is the winner.
        torch.maximum(winner, wins.to(winner.dtype).mul_(tap), out=winner)
    offset.copy_(winner)
    if _holds_nan(y):
        for tap, outputs, inputs, _ in taps:
            offset[outputs] = torch.where(x[inputs].isnan(), tap, offset[outputs])


def _max_by_window(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry) -> None:
    """Max pooling into `y` and `offset`, one window of all samples and channels after the other."""
    y.fill_(-float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min)
    offset.copy_(first_taps(geometry))
    space = tuple(range(2, x.dim()))
    for output, inputs, taps in window_pieces(geometry):
        values = x[inputs].contiguous(memory_format=memory_format(x))
        greatest = values.amax(space, keepdim=True)
        # The first of the taps that hold it is the greatest number, if they are counted from the last one.
        holds = torch.eq(values, greatest, out=torch.empty_like(values)).to(torch.float32)
        first = geometry.taps - (holds * (geometry.taps - taps)).amax(space, keepdim=True)
        if _holds_nan(greatest):
            last = (values.isnan() * (taps + 1)).amax(space, keepdim=True) - 1
            first = torch.where(greatest.isnan(), last, first)
        y[output], offset[output] = greatest, first.to(offset.dtype)


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = x[winner of window o]: the derivative of max pooling, as a linear map.  A window without input gives 0."""
    index, full = _winners(offset, geometry)
    y = x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    return arranged(y if full is None else y.mul_(full), format)


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] over the windows o whose winner is i: the adjoint of `max_pool_gather`."""
    index, full = _winners(offset, geometry)
    x = g.new_zeros((*g.shape[:2], math.prod(geometry.input)), dtype=accumulation_dtype(g.dtype))
    g = g if full is None else g * full
    x.scatter_add_(2, index.flatten(2), g.flatten(2).to(x.dtype))
    return arranged(x.view(*g.shape[:2], *geometry.input).to(g.dtype), format)


def avg_pool(x: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = Σ_k x[o·s − p + k·d] / divisor[o]."""
    y = _empty(x, geometry.output, format)
    for part in _chunks(x, geometry) if y.numel() else ():
        total = x[part].to(accumulation_dtype(x.dtype))
        for dim, axis in enumerate(geometry.axes, start=2):
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
    return arranged(_positions(offset, geometry, torch.int64), memory_format(offset))


def _positions(offset: Tensor, geometry: PoolGeometry, dtype: torch.dtype) -> Tensor:
    """`winner_index`; what is not of the windows' number is computed in `dtype`.

    With the tap's digits t_d (t = Σ t_d · Π kernel behind d) and a step of u_d positions per tap, the position is
    start + Σ t_d·u_d.  The quotients q_d = t // Π kernel behind d are at hand, and t_d = q_d − kernel_d · q_{d−1}.
    """
    starts = torch.zeros((), dtype=torch.int64, device=offset.device)
    quotient, step, carried = offset.to(dtype), 1, 0
    delta = torch.zeros((), dtype=dtype, device=offset.device)
    for dim in reversed(range(geometry.rank)):
        axis = geometry.axes[dim]
        o = torch.arange(axis.output, device=offset.device).view(-1, *(1,) * (geometry.rank - 1 - dim))
        starts = starts + axis.start(o) * step  # type: ignore[arg-type]
        delta = delta + quotient * (step * axis.dilation - carried)
        carried, step = axis.kernel * step * axis.dilation, step * axis.input
        if dim:
            quotient = _quotient(quotient, axis.kernel, offset.dtype)
    return delta.to(torch.int64) + starts


def _quotient(t: Tensor, divisor: int, dtype: torch.dtype) -> Tensor:
    """t // divisor, for values `t` of the type `dtype`; for bytes by a product, 8 times as fast as a quotient."""
    if dtype is torch.uint8:
        return (t * (65536 // divisor + 1)) >> 16  # exact: t · divisor < 65536
    return torch.div(t, divisor, rounding_mode="floor")


def _winners(offset: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor | None]:
    """`winner_index`; and [*output] whether a window holds any input, else its winner is position 0; None if all do."""
    index = _positions(offset, geometry, torch.int32 if math.prod(geometry.input) < 2**31 else torch.int64)
    full = torch.ones((), dtype=torch.bool, device=offset.device)
    counts = [[axis.taps_between(o, 0, axis.input) for o in range(axis.output)] for axis in geometry.axes]
    if all(map(all, counts)):
        return index, None
    for column in counts:
        full = full.unsqueeze(-1) & torch.tensor(column, device=offset.device).gt(0)
    return index.mul_(full), full


def _divide(total: Tensor, geometry: AvgGeometry, out: Tensor) -> Tensor:
    """`total` by each window's divisor; integers truncate, as C does."""
    divisor = torch.tensor(geometry.divisor or 1, device=total.device)
    if not geometry.divisor:
        for column in geometry.counts():
            divisor = divisor.unsqueeze(-1) * torch.tensor(column, device=total.device)
    return torch.div(total, divisor, rounding_mode=None if total.is_floating_point() else "trunc", out=out)


def _holds_nan(t: Tensor) -> bool:
    """Whether the sum is NaN, which a NaN makes it (and infinities of both signs, too)."""
    return t.is_floating_point() and bool(t.sum().isnan())


def _empty(like: Tensor, spatial: tuple[int, ...], format: torch.memory_format) -> Tensor:
    size = (*like.shape[:2], *spatial)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def _chunks(x: Tensor, geometry: PoolGeometry) -> Iterator[slice]:
    """Slices of the batch, each of about `_CHUNK` elements and at least one sample."""
    elements = x.shape[1] * max(math.prod(geometry.input), math.prod(geometry.output))
    step = max(1, _CHUNK // max(1, elements))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))
