"""Windows of a tensor as the columns of matrices: the indexing of convolution, for any rank.

Along one dimension, the *lead*, windows need no copy.  All others are unrolled, the last first:

    rows[l, k, c, n, o] = padded[n, c, l, o·stride + k·dilation]              (o, k: of all dimensions but the lead)

and as the taps of the lead are rows that follow one another, the columns of a window lie in one piece:

    windows[o₀] = rows[o₀·stride₀ : o₀·stride₀ + kernel₀], read as a matrix [kernel₀·k·c, n·o]

These matrices overlap in memory, and each is dense.  Of a 5×5 convolution's input 5 copies are made and not 25, which
LeNet's convolutions took 2 to 3 times as long for; and their gradients are added up by the product itself.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv.eager.slices import axis_taps
from torchconv.geometry import ConvGeometry, Ints

# Elements of the rows that are made at a time: 4 MiB in float32, so that they are still in the cache for the product.
CHUNK = 1 << 20
# Elements of each kind of scratch memory that are kept at most.
_KEPT = 1 << 21
# Sizes that each is kept for at most.
_SIZES = 64
# Columns that a matrix has at least, if it can: with 14 of them products go at 0.3 of their speed, with 28 at 0.6.
_COLUMNS = 32
# Columns that are enough for full speed: 3136 are slower than 224, which leave the matrix in the cache.
_PANEL = 256
# Elements of a matrix, 0.4 MB in float32: twice as many take a fifth more time, for the second-level cache is smaller.
_MATRIX = 100_000


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@functools.lru_cache(maxsize=1024)
def chunks(number: int, elements: int, limit: int) -> list[slice]:
    """Slices of a number of things, alike but for the last: of at most `limit` elements, so many a thing, or of one."""
    slices = -(-number // max(1, limit // max(1, elements)))
    step = -(-number // max(1, slices))
    return [slice(start, min(start + step, number)) for start in range(0, number, step or 1)]


def samples(batch: int, elements: int) -> list[slice]:
    """Slices of a batch, of so many elements a sample, that are taken one after the other."""
    return chunks(batch, elements, CHUNK)


def samples_and_channels(batch: int, channels: int, elements: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Some samples, or where one has more than `limit` elements, some of its channels, of so many elements each."""
    return itertools.product(chunks(batch, channels * elements, limit), chunks(channels, elements, limit))


def piece(t: Tensor, part: slice, dim: int = 0) -> Tensor:
    """This part of a dimension, a view: `t` itself if it is all of it."""
    if part.step not in (None, 1):
        index = (*(slice(None),) * dim, part)
        return t[index]
    whole = part.start == 0 and part.stop == t.shape[dim]
    return t if whole else t.narrow(dim, part.start, part.stop - part.start)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t` in that type: `t` itself, without a call, if it has it."""
    return t if t.dtype == dtype else t.to(dtype)


class Batch(NamedTuple):
    """Some samples, one dimension of which leads.

    Attributes:
        samples: which ones.
        lead: 'first', the first spatial dimension; or 'batch': each sample is a window, for kernels of 1 in the first
            dimension, and where its windows are too short; or 'unit', where samples are too small for a matrix of
            their own, a dimension of size 1.
        geometry: with the lead in front.
        parts: slices of the outputs along the lead, to be taken one after the other.
    """

    samples: slice
    lead: str
    geometry: ConvGeometry
    parts: list[slice]

    def of(self, t: Tensor) -> Tensor:
        """These samples of a batch `t` [N, C, *], as [N, C, lead, *]: a view."""
        return self.lift(piece(t, self.samples))

    def lift(self, t: Tensor) -> Tensor:
        """These samples alone, [N, C, *], as [N, C, lead, *]: a view."""
        if self.lead == "first":
            return t
        samples, channels, *spatial = t.shape
        by_sample, by_channel, *steps = t.stride()
        number, lead = (1, samples) if self.lead == "batch" else (samples, 1)
        return t.as_strided((number, channels, lead, *spatial), (by_sample, by_channel, by_sample, *steps))


@functools.lru_cache(maxsize=256)
def batches(geometry: ConvGeometry, batch: int, channels: int) -> list[Batch]:
    """The parts of a batch whose samples have so many input channels."""
    taps, outputs = channels * math.prod(geometry.kernel[1:]), math.prod(geometry.output[1:])
    row = taps * outputs * geometry.stride[0]  # elements of a sample's rows for one output along the first dimension
    many_taps = geometry.rank > 1 and geometry.kernel[0] > 1 and geometry.dilation[0] == 1
    if many_taps and batch * outputs >= _COLUMNS:
        fill = max(1, _PANEL // outputs)  # as many samples at least, and then a part of the outputs
        fit = min(_MATRIX // max(1, geometry.kernel[0] * taps * outputs), CHUNK // max(1, row * geometry.output[0]))
        some = chunks(batch, 1, max(fill, fit))
        parts = chunks(geometry.output[0], row * some[0].stop, CHUNK)
        return [Batch(part, "first", geometry, parts) for part in some]
    by_sample = geometry.groups == 1 and outputs * geometry.output[0] >= _COLUMNS
    found = []
    for part in samples(batch, taps * outputs * geometry.kernel[0] * geometry.output[0]):
        number = part.stop - part.start if by_sample else 1
        lifted = _with_lead(geometry, number)
        found.append(Batch(part, "batch" if by_sample else "unit", lifted, [slice(0, number)]))
    return found


def _with_lead(geometry: ConvGeometry, size: int) -> ConvGeometry:
    """The geometry with a dimension in front along which every position is a window of its own."""
    return replace(
        geometry,
        input=(size, *geometry.input),
        output=(size, *geometry.output),
        kernel=(1, *geometry.kernel),
        stride=(1, *geometry.stride),
        padding=(0, *geometry.padding),
        dilation=(1, *geometry.dilation),
    )


def is_pointwise(geometry: ConvGeometry) -> bool:
    """Whether every input position is the only one of a window, and of one alone."""
    alone = {*geometry.kernel, *geometry.stride} == {1} and not any(geometry.padding)
    return alone and geometry.input == geometry.output


def windows(x: Tensor, geometry: ConvGeometry, part: slice) -> Tensor:
    """The windows of these outputs along the lead of `x` [N, C, *input]: [G, lead, kernel·C/G, N·others].

    The memory is good until the next call in this operator, and may be that of `x`.
    """
    rows = padded(x, geometry, part)
    rows = by_group(rows, slice(0, rows.shape[2]), geometry)
    for dim in reversed(range(1, geometry.rank)):
        rows = dense(_by_tap(rows, geometry, dim), f"rows {dim}", rows.dtype)
    samples = rows.dim() - geometry.rank  # groups, rows, other taps and channels come before them, other outputs after
    return _overlapping(rows, math.prod(rows.shape[samples:]), geometry, 0, 1)


def _by_tap(rows: Tensor, geometry: ConvGeometry, dim: int) -> Tensor:
    """rows [G, rows, *taps, C/G, N, *positions, *outputs] with the last position's windows as a tap and an output more.

    A view, [G, rows, tap, *taps, C/G, N, *positions, output, *outputs].
    """
    size, stride, axis = rows.shape, rows.stride(), rows.dim() + dim - geometry.rank
    return rows.as_strided(
        (*size[:2], geometry.kernel[dim], *size[2:axis], geometry.output[dim], *size[axis + 1 :]),
        (
            *stride[:2],
            stride[axis] * geometry.dilation[dim],
            *stride[2:axis],
            stride[axis] * geometry.stride[dim],
            *stride[axis + 1 :],
        ),
    )


def fold(rows: Tensor, x: Tensor, geometry: ConvGeometry, part: slice) -> None:
    """The adjoint of `windows`: every element of the rows is added to where it came from in `x` [N, C, *input]."""
    first = part.start * geometry.stride[0] - geometry.padding[0]
    inside = _inside(first, first + rows.shape[1], geometry.input[0])
    if inside.start == inside.stop:  # these windows see nothing but padding
        return
    size = (*rows.shape[:2], *geometry.kernel[1:], x.shape[1] // geometry.groups, x.shape[0], *geometry.output[1:])
    rows = piece(rows.view(size), slice(inside.start - first, inside.stop - first), 1)
    for dim in range(1, geometry.rank):
        axis = rows.dim() - 1 + dim - geometry.rank  # of one tap
        if dim < geometry.rank - 1:
            shape = list(rows.shape[:2] + rows.shape[3:])
            shape[axis] = geometry.input[dim]
            total = rows.new_zeros(shape)
        else:
            total = by_group(x, inside, geometry)
        by_tap = rows.unbind(2)
        for tap, outputs, inputs, _ in axis_taps(geometry.axes[dim]):
            piece(total, inputs, axis).add_(piece(by_tap[tap], outputs, axis))
        rows = total


def zero_rows(pixels: Tensor, channels: int, geometry: ConvGeometry) -> Tensor:
    """Zeros for the rows that the windows of pixels [G, lead, O/G, P] share: [G, rows, other taps, C/G, P]."""
    number = (pixels.shape[1] - 1) * geometry.stride[0] + geometry.kernel[0]
    size = (number, math.prod(geometry.kernel[1:]), channels // geometry.groups, pixels.shape[3])
    return scratch((pixels.shape[0], *size), "gradient", pixels.dtype).zero_()


def disjoint_windows(rows: Tensor, geometry: ConvGeometry) -> Iterator[tuple[slice, Tensor]]:
    """The windows of the rows in sets that do not overlap: which outputs of the lead, and [G, lead, K, P]."""
    step = -(-geometry.kernel[0] // geometry.stride[0])
    for first in range(min(step, (rows.shape[1] - geometry.kernel[0]) // geometry.stride[0] + 1)):
        yield slice(first, None, step), _overlapping(rows, rows.shape[-1], geometry, first, step)


def _overlapping(rows: Tensor, columns: int, geometry: ConvGeometry, first: int, step: int) -> Tensor:
    """The windows first, first + step, … along the lead of dense rows [G, rows, *]: [G, lead, K, columns]."""
    groups, number, *others = rows.shape
    row, kernel, stride = math.prod(others), geometry.kernel[0], geometry.stride[0]
    windows = (number - kernel) // stride + 1
    return rows.as_strided(
        (groups, -(-(windows - first) // step), kernel * row // columns, columns),
        (number * row, step * stride * row, columns, 1),
        rows.storage_offset() + first * stride * row,
    )


def by_group(t: Tensor, part: slice, geometry: ConvGeometry) -> Tensor:
    """This part of the lead of [N, C, lead, *], as [G, part, C/G, N, *]: a view."""
    samples, channels, _, *others = t.shape
    by_sample, by_channel, by_lead, *by_others = t.stride()
    channels //= geometry.groups
    size = (geometry.groups, part.stop - part.start, channels, samples, *others)
    stride = (channels * by_channel, by_lead, by_channel, by_sample, *by_others)
    return t.as_strided(size, stride, t.storage_offset() + part.start * by_lead)


def padded(x: Tensor, geometry: ConvGeometry, part: slice) -> Tensor:
    """What these outputs along the lead see of `x` and its padding, in the type of sums."""
    span = ends(geometry, part.start, part.stop)
    if geometry.padding_mode == "zeros":
        return _with_zeros(x, span)
    for dim, ((low, high), size) in enumerate(zip(span, geometry.input), start=2):
        if (low, high) == (0, size):
            continue
        position = torch.arange(low, high, device=x.device)
        if geometry.padding_mode == "reflect":
            position = (size - 1) - ((size - 1) - position.abs()).abs()
        elif geometry.padding_mode == "replicate":
            position = position.clamp(0, size - 1)
        else:
            position = position % size
        x = x.index_select(dim, position)
    return _with_zeros(x, tuple((0, size) for size in x.shape[2:]))


@functools.lru_cache(maxsize=1024)
def ends(geometry: ConvGeometry, first: int, stop: int) -> tuple[tuple[int, int], ...]:
    """The span of the input that the outputs from `first` up to `stop` along the lead see, of each dimension."""
    start = first * geometry.stride[0] - geometry.padding[0]
    extent = (stop - first - 1) * geometry.stride[0] + (geometry.kernel[0] - 1) * geometry.dilation[0] + 1
    others = [(-p, q - p) for p, q in zip(geometry.padding[1:], geometry.padded[1:])]
    return ((start, start + extent), *others)


def _with_zeros(x: Tensor, span: tuple[tuple[int, int], ...]) -> Tensor:
    """The part of `x` [N, C, *] between these ends of each dimension, and zeros where they lie beyond it."""
    inner, where, size = _meeting(span, x.shape[2:])
    part, dtype = x[inner] if inner else x, accumulation_dtype(x.dtype)
    channels_last = x.stride(1) == 1 and x.shape[1] > 1  # changed once, and not for every row
    if not where and x.dtype == dtype and not channels_last:
        return part
    result = scratch((*x.shape[:2], *size), "padded", dtype)
    if where:
        result.zero_()[where].copy_(part)
    else:
        result.copy_(part)
    return result


@functools.lru_cache(maxsize=1024)
def _meeting(span: tuple[tuple[int, int], ...], size: Ints) -> tuple[Any, Any, Ints]:
    """Where a tensor of that spatial size and the span between these ends meet: an index of each, and the span's size.

    An index is empty where it would be all.
    """
    inner = [_inside(low, high, n) for (low, high), n in zip(span, size)]
    where = [slice(i.start - low, i.stop - low) for i, (low, _) in zip(inner, span)]
    sizes = tuple(high - low for low, high in span)
    return _index(inner, size), _index(where, sizes), sizes


def _index(parts: Sequence[slice], size: Ints) -> Any:
    return () if all((p.start, p.stop) == (0, n) for p, n in zip(parts, size)) else last(parts)


def _inside(low: int, high: int, size: int) -> slice:
    """The positions from `low` up to `high` that a dimension of this size has: if none, an empty slice."""
    start = min(max(low, 0), size)
    return slice(start, max(start, min(high, size)))


def last(index: Iterable[Any]) -> Any:
    """An index of the last dimensions."""
    return (Ellipsis, *index)


def zero_total(x: Tensor) -> Tensor:
    """Zeros in the place of `x`, or elsewhere if its type is not that of sums."""
    dtype = accumulation_dtype(x.dtype)
    return x.zero_() if x.dtype == dtype else torch.zeros_like(x, dtype=dtype)


def settle(total: Tensor, bias: Tensor | None, target: Tensor) -> None:
    """The sums of `zero_total(target)`, and the bias of each channel, as the values of `target`: rounded once."""
    if bias is not None:
        total += cast(bias, total.dtype).view(-1, *(1,) * (total.dim() - 2))
    if total.dtype != target.dtype:
        target.copy_(total)


_Pieces = dict[tuple[str, torch.dtype], dict[Any, Tensor]]


class _Scratch:
    """Scratch memory by name and type, for each of the operators that run one inside the other.

    Each is kept as it was asked for, by size, and as a whole, by None.  It is an object of its own because attributes
    of a `threading.local` take four times as long.

    Attributes:
        levels: the memory of the outermost operator, of the one inside it, and so on.
        level: the innermost's; −1 where none runs.
    """

    __slots__ = ("level", "levels")

    def __init__(self) -> None:
        self.level = -1
        self.levels: list[_Pieces] = []


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.scratch = _Scratch()


per_thread = _PerThread()


def in_scratch(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator with scratch memory that no other one uses while it runs.

    Python may run anything between two lines of an operator, a signal's handler or the finaliser of some object, and
    that may convolve as well.
    """

    @functools.wraps(operator)
    def call(*args: Any) -> Any:
        kept = per_thread.scratch
        kept.level += 1
        try:
            while kept.level >= len(kept.levels):  # and if in the middle of this another operator runs, once more
                kept.levels.append({})
            return operator(*args)
        finally:
            kept.level -= 1

    return call


def scratch(size: Sequence[int], name: str, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for an operator `in_scratch`, the same whenever a thread runs one, unless it is too little.

    One tensor for each size, whose shape and strides stay as they are.
    What is given back to the C library in one step of a training, it gives back to the system, and the next step has
    to ask for it page by page: that took a tenth of LeNet's.
    """
    size = tuple(size)
    kept = per_thread.scratch
    if kept.level < 0:
        raise RuntimeError(f"scratch memory ({name}) is for what is `in_scratch`")
    pieces = kept.levels[kept.level].setdefault((name, dtype), {})
    found = pieces.get(size)
    if found is not None:
        return found
    elements = math.prod(size)
    if elements > _KEPT:
        return torch.empty(size, dtype=dtype)
    whole = pieces.get(None)
    if whole is None or whole.numel() < elements:
        whole = torch.empty(elements, dtype=dtype)
        pieces.clear()
    elif len(pieces) > _SIZES:
        pieces.clear()
    pieces[None], pieces[size] = whole, whole.as_strided(size, steps(size))
    return pieces[size]


@functools.lru_cache(maxsize=1024)
def steps(size: Ints) -> Ints:
    """How many elements a step along each dimension of a dense tensor is."""
    return tuple(math.prod(size[dim + 1 :]) for dim in range(len(size)))


def dense(t: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """`t` itself if it is contiguous and of that type, else a copy in `scratch`."""
    return t if t.dtype == dtype and t.is_contiguous() else scratch(t.shape, name, dtype).copy_(t)


def scratch_like(t: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """`t` itself if it is contiguous and of that type, else scratch memory of its size."""
    return t if t.dtype == dtype and t.is_contiguous() else scratch(t.shape, name, dtype)
