"""Windows of a padded tensor, unrolled into the columns of a matrix: the indexing of convolution, for any rank.

They are unrolled in two steps, the last dimension first:

    rows[c, kw, r, n, h, ow]       = padded[n, c, h·stride + r, ow·stride + kw·dilation]
    columns[kh, c, kw, n, oh, ow]  = rows[c, kw, r, n, oh + q, ow]    where q·stride + r = kh·dilation, 0 ≤ r < stride

(for two dimensions; a third is treated like h).  The second step, which writes kh times as much, copies runs of oh·ow
elements, because the first has sorted h by its remainders r.  In one step every run is ow elements, 10 in LeNet's
second convolution, which took 1.5 times as long; and unsorted a stride of 2 took 3 times as long.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.geometry import ConvGeometry, Ints

# Elements that are kept at most, of columns and of rows each.
SCRATCH = 1 << 21


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def chunks(batch: int, elements: int, limit: int) -> Iterator[slice]:
    """Slices of the batch, alike but for the last: of at most `limit` elements, so many a sample, or of one sample."""
    number = -(-batch // max(1, limit // max(1, elements)))
    step = -(-batch // max(1, number))
    return (slice(start, start + step) for start in range(0, batch, step or 1))


def pad(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """`x` [N, C, *input] as [N, C, *padded]."""
    amounts = [(p, q - p - i) for i, p, q in zip(geometry.input, geometry.padding, geometry.padded)]
    if geometry.padding_mode == "zeros":
        return F.pad(x, [a for pair in reversed(amounts) for a in pair]) if any(map(any, amounts)) else x
    for dim, (size, (lower, upper)) in enumerate(zip(geometry.input, amounts)):
        position = torch.arange(-lower, size + upper, device=x.device)
        if geometry.padding_mode == "reflect":
            position = (size - 1) - ((size - 1) - position.abs()).abs()
        elif geometry.padding_mode == "replicate":
            position = position.clamp(0, size - 1)
        else:
            position = position % size
        x = x.index_select(2 + dim, position)
    return x


def crop(padded: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint of padding with zeros: the input's part of [N, C, *padded], as a view."""
    for dim, (size, start) in enumerate(zip(geometry.input, geometry.padding)):
        padded = padded.narrow(2 + dim, start, size)
    return padded


class Move(NamedTuple):
    """Equal parts of two tensors, as views: the size, and strides and start in either."""

    size: Ints
    to: Ints
    to_start: int
    by: Ints
    by_start: int

    def ends(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        start = source.storage_offset() + self.by_start
        return target.as_strided(self.size, self.to, self.to_start), source.as_strided(self.size, self.by, start)

    def each(self, first: int, last: int) -> Iterator[Move]:
        """The parts of this one, an index each of its dimensions from `first` up to `last`."""
        dims = range(first, last)
        for index in itertools.product(*(range(self.size[dim]) for dim in dims)):
            to = self.to_start + sum(i * self.to[dim] for i, dim in zip(index, dims))
            by = self.by_start + sum(i * self.by[dim] for i, dim in zip(index, dims))
            size, to_strides, by_strides = (t[:first] + t[last:] for t in (self.size, self.to, self.by))
            yield Move(size, to_strides, to, by_strides, by)


class Plan(NamedTuple):
    """What is moved from where to where, both ways; it depends on sizes and strides alone, and is kept for them."""

    rows_size: Ints
    columns_size: Ints
    rows: list[Move]  # from the padded tensor
    columns: list[Move]  # from the rows
    rows_by_tap: list[Move]  # the same with a tap each, no two of whose elements have one source
    columns_by_tap: list[Move]


def unroll(padded: Tensor, geometry: ConvGeometry) -> Tensor:
    """The columns of `padded` [N, C, *padded]: [G, *kernel but the last, C/G, kw, N, *output].

    They are good until the next call in this thread: what a chunk needs is kept for the next one.
    """
    plan = _plan(geometry, tuple(padded.shape[:2]), padded.stride())
    rows, columns = _scratch("rows", plan.rows_size, padded), _scratch("columns", plan.columns_size, padded)
    for moves, target, source in ((plan.rows, rows, padded), (plan.columns, columns, rows)):
        for move in moves:
            to, by = move.ends(target, source)
            to.copy_(by)
    return columns


def fold(columns: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint of `unroll`: every element of the columns added to where it came from, [N, C, *padded]."""
    batch, channels = columns.shape[-geometry.rank - 1], columns.shape[geometry.rank] * geometry.groups
    padded = columns.new_zeros((batch, channels, *geometry.padded))
    plan = _plan(geometry, (batch, channels), padded.stride())
    rows = columns.new_zeros(plan.rows_size)
    for moves, source, target in ((plan.columns_by_tap, columns, rows), (plan.rows_by_tap, rows, padded)):
        for move in moves:
            by, to = move.ends(source, target)
            to += by
    return padded


class _Memory(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}


_memory = _Memory()


def _scratch(name: str, size: Ints, like: Tensor) -> Tensor:
    """Uninitialised memory of the type of `like`, the same at every call of a thread, unless it is too little.

    What is given back to the C library in one step of a training, it gives back to the system, and the next step has
    to ask for it page by page: that took a tenth of LeNet's.
    """
    elements = math.prod(size)
    if elements > SCRATCH:
        return like.new_empty(size)
    kept = _memory.kept.get((name, like.dtype))
    if kept is None or kept.numel() < elements:
        kept = _memory.kept[name, like.dtype] = like.new_empty(elements)
    return kept[:elements].view(size)


@functools.lru_cache(maxsize=256)
def _plan(geometry: ConvGeometry, shape: Ints, strides: Ints) -> Plan:
    """The plan for a padded tensor of this batch, these channels and these strides."""
    rank, (batch, channels) = geometry.rank, (shape[0], shape[1] // geometry.groups)
    *outer, kw = geometry.kernel
    *outer_stride, sw = geometry.stride
    *outer_dilation, dw = geometry.dilation
    n, c, *by_outer, by_w = strides
    remainders = [min(s, (k - 1) * d + 1) for k, s, d in zip(outer, outer_stride, outer_dilation)]
    lengths = [-(-size // s) for size, s in zip(geometry.padded, outer_stride)]
    ow = geometry.output[-1]

    rows_size = (geometry.groups, channels, kw, *remainders, batch, *lengths, ow)
    to = _dense(rows_size)
    to_remainder, to_n, to_outer = to[3 : rank + 2], to[rank + 2], to[rank + 3 : -1]
    rows = []
    for remainder in itertools.product(*map(range, remainders)):
        here = [-(-(size - r) // s) for size, r, s in zip(geometry.padded, remainder, outer_stride)]
        by = (c * channels, c, by_w * dw, n, *(t * s for t, s in zip(by_outer, outer_stride)), by_w * sw)
        size = (*rows_size[:3], batch, *here, ow)
        starts = (sum(r * t for r, t in zip(remainder, ts)) for ts in (to_remainder, by_outer))
        rows.append(_move(size, (*to[:3], to_n, *to_outer, 1), by, *starts))

    columns_size = (geometry.groups, *outer, channels, kw, batch, *geometry.output)
    into, columns = _dense(columns_size), []
    for taps in itertools.product(*map(_taps, outer, outer_stride, outer_dilation)):
        size = (geometry.groups, *(tap.number for tap in taps), *columns_size[rank:])
        along = (*(t * tap.step for tap, t in zip(taps, into[1:])), *into[rank:])
        by = (to[0], *(t * tap.ahead for tap, t in zip(taps, to_outer)), *to[1:3], to_n, *to_outer, 1)
        start = sum(tap.first * t for tap, t in zip(taps, into[1:]))
        by_start = sum(tap.remainder * t + tap.quotient * u for tap, t, u in zip(taps, to_remainder, to_outer))
        columns.append(_move(size, into[:1] + along, by, start, by_start))

    rows_by_tap = [part for move in rows for part in move.each(2, 3)]
    columns_by_tap = [part for move in columns for part in move.each(1, rank)]
    return Plan(rows_size, columns_size, rows, columns, rows_by_tap, columns_by_tap)


class _Taps(NamedTuple):
    """The taps of one dimension whose distances from the first leave one remainder by the stride."""

    first: int
    step: int  # from one to the next
    number: int
    quotient: int  # of the first one's distance by the stride
    remainder: int
    ahead: int  # by how much the quotient grows at a step


def _taps(kernel: int, stride: int, dilation: int) -> list[_Taps]:
    step = stride // math.gcd(stride, dilation)
    return [
        _Taps(first, step, -(-(kernel - first) // step), *divmod(first * dilation, stride), step * dilation // stride)
        for first in range(min(step, kernel))
    ]


def _move(size: Sequence[int], to: Sequence[int], by: Sequence[int], to_start: int, by_start: int) -> Move:
    return Move(tuple(size), tuple(to), to_start, tuple(by), by_start)


def _dense(size: Ints) -> Ints:
    """The strides of a contiguous tensor."""
    return tuple(math.prod(size[dim + 1 :]) for dim in range(len(size)))
