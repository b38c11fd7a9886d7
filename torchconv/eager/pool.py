"""Pooling in plain tensor algebra, for any rank.

What can be done for all windows at once is: a few passes over whole tensors cost a fraction of a walk through windows.
For a maximum all taps of all windows are laid side by side and reduced.  A sum over a window is the sum of its rows'
sums, so averages go one dimension after the other, and one tap of all windows is a strided slice of the input.  Some
samples at a time, whose tensors stay in the cache.

A winner is kept as the flat position of its tap in the window (`offset`), one byte for windows of up to 256 elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchconv.eager.slices import (
    axis_pieces,
    divisors,
    extent,
    first_taps,
    known_starts,
    side_by_side,
    single_windows,
    tap_numbers,
    window_positions,
    window_starts,
    window_strides,
)
from torchconv.eager.windows import (
    accumulation_dtype,
    cast,
    chunks,
    in_scratch,
    last,
    piece,
    samples_and_channels,
    scratch,
    settle,
    zero_total,
)
from torchconv.geometry import AvgGeometry, Axis, PoolGeometry
from torchconv.layout import arranged, memory_format

# Elements that are made of an input at a time: 4 MiB in float32.
_CHUNK = 1 << 20
# Values of all windows up to which the fewest calls win: they take longer for each value than passes over all of them.
_FEW = 1 << 11
# The taps' dimensions are the first `rank` of these.
_LAST = (-1, -2, -3)


@in_scratch
def max_pool(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y[o] = max over taps k of x[o·s − p + k·d], and the offset of the winning tap.

    Of equal values the first wins; a NaN beats every number, and of several NaNs the last wins.  A window of nothing
    but the lowest value reports its first element inside the input.
    """
    if _are_few(x, geometry):
        return _max_of_few(x, geometry, format)
    y = _empty(x, geometry.output, format)
    offset = torch.empty_like(y, dtype=offset_dtype(geometry))
    pool = _max_of_adaptive if geometry.adaptive else _max
    if y.numel():
        for some, of in samples_and_channels(x.shape[0], x.shape[1], extent(geometry).values, _CHUNK):
            inputs, best, winner = (piece(piece(t, some), of, 1) for t in (x, y, offset))
            pool(inputs, best, winner, geometry, format)
    return y, offset


def _max_of_few(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Max pooling of so few values that it is the calls that take time."""
    x = _padded(x, geometry, _lowest(x.dtype), format)
    values = _windows(x, geometry, slice(0, geometry.output[0])).flatten(-geometry.rank)
    y, winner = values.max(-1)  # contiguous, both
    nan = None if torch.equal(y, y) else _last_nan(values, -1)
    offset = _winner(winner, nan, y, first_taps(geometry)).to(offset_dtype(geometry))
    return (y, offset) if format == torch.contiguous_format else (arranged(y, format), arranged(offset, format))


def _max(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> None:
    """Max pooling into `y` and `offset`: windows at regular steps, which are a view with dimensions of taps more."""
    x, rank = _padded(x, geometry, _lowest(x.dtype), format), geometry.rank
    taps_first = (*range(-rank, 0), *range(2 + rank))
    first = first_taps(geometry)
    for rows in chunks(geometry.output[0], y.numel() // geometry.output[0] * geometry.taps, _CHUNK):
        view = _windows(x, geometry, rows)
        # They are copied to where the longer of the two is dense: windows, or outputs.
        if format == torch.contiguous_format and geometry.taps > math.prod(geometry.output):
            values = scratch(view.shape, "pool values", x.dtype).copy_(view)
            values, taps = values.flatten(-rank), -1
        else:
            memory = _scratch(tuple(view.shape[:-rank]), "values", x.dtype, format, geometry.kernel)
            values, taps = memory.copy_(view.permute(taps_first)).flatten(0, rank - 1), 0
        _reduce(values, taps, piece(y, rows, 2), piece(offset, rows, 2), first[rows] if first.dim() else first)


def _max_of_adaptive(x: Tensor, y: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> None:
    """Max pooling into `y` and `offset`: windows of different lengths, laid side by side, where they tile an input."""
    for dim, positions in enumerate(window_positions(geometry), start=2):
        # Behind the input's end is what the taps that a window lacks read.
        end = x.new_full((), _lowest(x.dtype)).expand(*x.shape[:dim], 1, *x.shape[dim + 1 :])
        x = torch.cat((x, end), dim).index_select(dim, positions)
    _max(x, y, offset, side_by_side(geometry), format)


def _reduce(values: Tensor, taps: int, y: Tensor, offset: Tensor, first: Tensor) -> None:
    """The greatest of the values along dimension `taps`, and the first tap that holds it; overwrites the values.

    Passes over all taps of all windows, few and each as fast as memory: in float32 alone, because booleans, `where`
    and `argmax` take 4 to 100 times as long.
    """
    torch.amax(values, taps, out=y)
    # A NaN makes their sum NaN, and so do infinities of both signs.
    nan = _last_nan(values, taps) if y.is_floating_point() and math.isnan(y.sum()) else None
    number = values.shape[taps]
    numbers = tap_numbers(number, 0 if taps else y.dim())
    lost = cast(torch.lt(values, y.unsqueeze(taps), out=values), numbers.dtype)
    candidates = torch.add(numbers, lost, alpha=number, out=lost)
    winner = torch.amin(candidates, taps, out=torch.empty_like(y, dtype=numbers.dtype))
    # From float32 to bytes in one step takes 4 times as long.
    offset.copy_(_winner(winner.to(torch.int32), nan, y, first))


def _last_nan(values: Tensor, taps: int) -> Tensor:
    """The last NaN along dimension `taps`, or 0."""
    numbers = tap_numbers(values.shape[taps], 0 if taps else values.dim() - 1)
    return (values.isnan() * numbers).amax(taps)


def _winner(tap: Tensor, nan: Tensor | None, y: Tensor, first: Tensor) -> Tensor:
    """The winning tap, given the first that holds the maximum `y`: if that is NaN, the last that does."""
    if first.dim():  # where even the greatest is the lowest value, the first tap that holds it may lie in the padding
        tap = torch.maximum(tap, first)
    return tap if nan is None else torch.where(y.isnan(), nan.to(tap.dtype), tap)


@in_scratch
def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = x[winner of window o]: the derivative of max pooling, as a linear map.  A window without input gives 0."""
    index, full = _winners(offset, geometry, format)
    y = _flat(x, format).gather(_pixels(format), _flat(index, format))
    if full is not None:
        y *= _flat(full.expand(index.shape), format)
    return _unflat(y, geometry.output, format)


@in_scratch
def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] over the windows o whose winner is i: the adjoint of `max_pool_gather`."""
    x = _empty(g, geometry.input, format)
    flat, dtype = _flat(x, format), accumulation_dtype(g.dtype)
    if g.numel() == 0:
        return x.zero_()
    for part in _chunks(g, geometry):
        index, full = _winners(piece(offset, part), geometry, format)
        share, target = piece(g, part), piece(flat, part)
        share = cast(share if full is None else share * full, dtype)
        total = zero_total(target)
        total.scatter_add_(_pixels(format), _flat(index, format), _flat(share, format))
        settle(total, None, target)
    return x


def _are_few(x: Tensor, geometry: PoolGeometry) -> bool:
    """Whether the windows of this input hold so few values that it is the calls that take time."""
    samples, channels, *_ = x.shape
    return 0 < samples * channels * extent(geometry).values <= _FEW and not geometry.adaptive


def _windows(x: Tensor, geometry: PoolGeometry, rows: slice) -> Tensor:
    """These rows of the windows of an input that holds all their taps, [N, C, rows, *others, *kernel]: a view."""
    size, strides = window_strides(geometry, x.shape, x.stride(), rows.stop - rows.start)
    return x.as_strided(size, strides, x.storage_offset() + rows.start * strides[2] if rows.start else None)


def _padded(x: Tensor, geometry: PoolGeometry, value: float, format: torch.memory_format) -> Tensor:
    """The input and what of the padding the windows see, filled with a value: `x` itself if they see none."""
    span = extent(geometry).span
    if span == geometry.input:
        return x
    inside = (slice(p, p + i) for p, i in zip(geometry.padding, geometry.input))
    padded = _scratch((*x.shape[:2], *span), "padded", x.dtype, format).fill_(value)
    padded[last(inside)] = x
    return padded


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


@in_scratch
def avg_pool(x: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = Σ_k x[o·s − p + k·d] / divisor[o]."""
    if _are_few(x, geometry):
        windows = _windows(_padded(x, geometry, 0, format), geometry, slice(0, geometry.output[0]))
        total = torch.sum(windows, _LAST[: geometry.rank], dtype=accumulation_dtype(x.dtype))  # contiguous
        in_place = format == torch.contiguous_format and total.dtype == x.dtype
        return _divide(total, geometry, out=total if in_place else _empty(x, geometry.output, format))
    y = _empty(x, geometry.output, format)
    for part in _chunks(x, geometry) if y.numel() else ():
        total = cast(piece(x, part), accumulation_dtype(x.dtype))
        single, others = single_windows(geometry)
        if single.dims:
            total = total[single.inputs]
            size = [1 if dim in single.dims else n for dim, n in enumerate(total.shape)]
            total = torch.sum(total, single.dims, keepdim=True, out=_empty(total, size[2:], format))
        for dim, axis in others:
            total = _sum(total, dim, axis)
        _divide(total, geometry, out=piece(y, part))
    return y


def avg_pool_grad(g: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] / divisor[o] over the windows o that hold i: the adjoint of `avg_pool`."""
    x = _empty(g, geometry.input, format)
    if g.numel() == 0:
        return x.zero_()
    for part in _chunks(g, geometry):
        share = cast(piece(g, part), accumulation_dtype(g.dtype))
        share = _divide(share, geometry, out=torch.empty_like(share))
        for dim in reversed(range(1, geometry.rank)):
            share = _spread(share, 2 + dim, geometry.axes[dim], out=None)
        target = piece(x, part)
        settle(_spread(share, 2, geometry.axes[0], out=target if share.dtype == x.dtype else None), None, target)
    return x


def _sum(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The sums of `x` over the windows of one dimension."""
    pieces = axis_pieces(axis, dim, x.dim())
    size = (*x.shape[:dim], axis.output, *x.shape[dim + 1 :])
    if pieces.by_window:  # a sum that is left to allocate its result takes 3 times as long in channels_last
        y = _empty(x, size[2:], memory_format(x))
        if not axis.adaptive and axis.padded == axis.input:
            windows = x.unfold(dim, (axis.kernel - 1) * axis.dilation + 1, axis.stride)[..., :: axis.dilation]
            return torch.sum(windows, -1, out=y)
        for outputs, inputs, _ in pieces.all:
            torch.sum(x[inputs], dim, keepdim=True, out=y[outputs])
        return y
    whole = [x[inputs] for _, inputs, everywhere in pieces.all if everywhere]
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
    starts = window_starts(geometry, offset.device)
    return arranged(_behind_start(offset.long(), geometry) + starts, memory_format(offset))


def _behind_start(offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """How far behind their windows' first taps these taps lie in the flattened input.

    If a tap of dimension d steps over u_d positions, the tap of digits t_d lies Σ t_d·u_d behind the window's start.
    The quotients q_d = offset // Π kernel behind d are at hand, and t_d = q_d − kernel_d · q_{d−1}.
    """
    behind, quotient, pixels, carried = None, offset, 1, 0
    for dim in reversed(range(geometry.rank)):
        step = pixels * geometry.dilation[dim]
        if behind is None:
            behind = quotient * step if step != 1 else quotient
        else:
            behind = torch.add(behind, quotient, alpha=step - carried)
        carried, pixels = geometry.kernel[dim] * step, pixels * geometry.input[dim]
        if dim:
            quotient = _quotient(quotient, geometry.kernel[dim], geometry.taps)
    return behind  # type: ignore[return-value]


def _quotient(t: Tensor, divisor: int, limit: int) -> Tensor:
    """t // divisor for 0 ≤ t < limit; for small numbers as a product, 8 times as fast, by powers of 2 as a shift."""
    if t.dtype == torch.int16:  # never while tracing, where the sizes of adaptive windows are symbols
        if divisor.bit_count() == 1:
            return t >> (divisor.bit_length() - 1)
        bits = (limit * divisor).bit_length()  # few, so that the product fits as well
    elif limit <= 256:
        bits = 16
    else:
        return torch.div(t, divisor, rounding_mode="floor")
    return (t * (2**bits // divisor + 1)) >> bits  # exact, because t · divisor < 2^bits


def _winners(offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor | None]:
    """`winner_index`; and [*output] whether a window holds any input, else its winner is position 0; None if all do."""
    dtype = _narrow_dtype(geometry)
    starts, full = known_starts(geometry, dtype)
    index = _scratch(tuple(offset.shape), "index", torch.int64, format)
    index.copy_(_behind_start(cast(offset, dtype), geometry) + starts)
    return (index, None) if full is None else (index.mul_(full), full)


@functools.lru_cache(maxsize=256)
def _narrow_dtype(geometry: PoolGeometry) -> torch.dtype:
    """A type that holds the winners, and what they are computed from: half the bytes take half the time."""
    pixels = math.prod(geometry.input)
    steps = [d * math.prod(geometry.input[dim:]) for dim, d in enumerate(geometry.dilation, start=1)]
    span = sum((k - 1) * step for k, step in zip(geometry.kernel, steps))
    if max(pixels, span, *steps) < 2**15 and geometry.taps <= 120:  # `_quotient` computes up to 2·taps² + taps
        return torch.int16
    return torch.int32 if pixels < 2**31 else torch.int64


def _divide(total: Tensor, geometry: AvgGeometry, out: Tensor) -> Tensor:
    """`total` by each window's divisor; integers truncate, as C does."""
    divisor = divisors(geometry, total.dtype)
    if total.is_floating_point():
        return torch.div(total, divisor, out=out)
    return torch.div(total, divisor, rounding_mode="trunc", out=out)


def _lowest(dtype: torch.dtype) -> float:
    return -float("inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _empty(like: Tensor, spatial: Sequence[int], format: torch.memory_format) -> Tensor:
    samples, channels, *_ = like.shape
    size = (samples, channels, *spatial)
    if format == torch.contiguous_format:
        return like.new_empty(size)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def _scratch(
    size: tuple[int, ...],
    name: str,
    dtype: torch.dtype,
    format: torch.memory_format = torch.contiguous_format,
    before: tuple[int, ...] = (),
) -> Tensor:
    """Scratch memory [N, C, *] in a memory format, or so much of it for each of the positions `before`."""
    if format == torch.contiguous_format:
        return scratch((*before, *size), f"pool {name}", dtype)
    return scratch((*before, size[0], *size[2:], size[1]), f"pool {name}", dtype).movedim(-1, len(before) + 1)


def _chunks(x: Tensor, geometry: PoolGeometry) -> list[slice]:
    """Slices of the batch, each of about `_CHUNK` elements, of the input or of the output, and at least one sample."""
    elements = max(math.prod(geometry.input), math.prod(geometry.output))
    return chunks(x.shape[0], x.shape[1] * elements, _CHUNK)
