"""Which slices of the input pooling reads: one tap of all windows along a dimension, or all taps of one window.

They depend on the geometry alone, and are kept for it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv.geometry import AvgGeometry, Axis, Ints, PoolGeometry

_Index = tuple[Any, ...]
_EVERYTHING: _Index = (slice(None), slice(None))  # all samples and channels
# Geometries that tensors of the output's size are kept for: memory is lost where every picture has a size of its own.
_TENSORS = 32


class Pieces(NamedTuple):
    """The pairs (outputs, inputs) of one dimension, and whether those outputs are all.

    Attributes:
        all: the pairs, as indices into tensors [N, C, *].
        by_window: whether a pair is one output and all its inputs, or all outputs that have a tap and its inputs.
        tile: whether every input is in exactly one pair.
    """

    all: list[tuple[_Index, _Index, bool]]
    by_window: bool
    tile: bool


@functools.lru_cache(maxsize=256)
def axis_pieces(axis: Axis, dim: int, dims: int) -> Pieces:
    """The pieces of dimension `dim` of a tensor of so many: by window if windows are fewer, or of different lengths."""

    def at(where: slice) -> _Index:
        return (*(slice(None),) * dim, where, *(slice(None),) * (dims - 1 - dim))

    tile = not axis.adaptive and axis.stride == axis.kernel and axis.dilation == 1
    tile = tile and axis.padding == 0 and axis.output * axis.kernel == axis.input
    if axis.adaptive or axis.output < axis.kernel:
        windows = [(at(slice(o, o + 1)), at(_window(axis, o)), axis.output == 1) for o in range(axis.output)]
        return Pieces(windows, True, tile)
    taps = [(at(outputs), at(inputs), everywhere) for _, outputs, inputs, everywhere in axis_taps(axis)]
    return Pieces(taps, False, tile)


class Single(NamedTuple):
    """The dimensions that have one window, and its inputs."""

    dims: list[int]
    inputs: _Index


@functools.lru_cache(maxsize=256)
def single_windows(geometry: PoolGeometry) -> tuple[Single, list[tuple[int, Axis]]]:
    """The dimensions that one window sums up, which go in one pass, and the others."""
    axes = list(enumerate(geometry.axes, start=len(_EVERYTHING)))
    inputs = (_window(axis, 0) if axis.output == 1 else slice(None) for _, axis in axes)
    single = Single([dim for dim, axis in axes if axis.output == 1], (*_EVERYTHING, *inputs))
    return single, [(dim, axis) for dim, axis in axes if axis.output != 1]


class Extent(NamedTuple):
    """How many values the windows of a channel hold, each counted for every window, and the size that they span.

    The span is that of the input and of the padding that windows see.
    """

    values: int
    span: Ints


@functools.lru_cache(maxsize=256)
def extent(geometry: PoolGeometry) -> Extent:
    """The extent of all windows of a channel, which takes as long to find as a small tensor to reduce."""
    return Extent(math.prod(geometry.output) * geometry.taps, geometry.padded)


@functools.lru_cache(maxsize=256)
def window_strides(geometry: PoolGeometry, size: Ints, strides: Ints, rows: int) -> tuple[Ints, Ints]:
    """Size and strides of so many rows of windows, [N, C, rows, *others, *kernel], of an input that has these."""
    by_output, by_tap = (tuple(map(mul, strides[2:], steps)) for steps in (geometry.stride, geometry.dilation))
    return (*size[:2], rows, *geometry.output[1:], *geometry.kernel), (*strides[:2], *by_output, *by_tap)


@functools.lru_cache(maxsize=_TENSORS)
def window_positions(geometry: PoolGeometry) -> list[Tensor]:
    """Of each dimension the positions of all windows' taps, [output·kernel]: of a tap not there, the input's size."""
    columns = []
    for axis in geometry.axes:
        o: Any = torch.arange(axis.output).unsqueeze(1)
        tap = torch.arange(axis.kernel)
        lengths = torch.tensor([axis.taps_between(o, 0, axis.input) for o in range(axis.output)])
        columns.append(torch.where(tap < lengths.unsqueeze(1), axis.start(o) + tap, axis.input).flatten())
    return columns


@functools.lru_cache(maxsize=_TENSORS)
def side_by_side(geometry: PoolGeometry) -> PoolGeometry:
    """The pooling of an input that holds the windows of this one side by side, overlapping no more."""
    size = tuple(o * k for o, k in zip(geometry.output, geometry.kernel))
    return replace(geometry, input=size, stride=geometry.kernel, adaptive=False)


@functools.lru_cache(maxsize=_TENSORS)
def first_taps(geometry: PoolGeometry) -> Tensor:
    """The number of each window's first tap that does not lie below index 0, [*output]; a single 0 if all are that."""
    numbers = torch.zeros((), dtype=torch.int64)
    for axis in geometry.axes:
        column = [axis.first_tap(o) for o in range(axis.output)]
        numbers = numbers.unsqueeze(-1) * axis.kernel + torch.tensor(column, dtype=torch.int64)
    return numbers if numbers.any() else torch.zeros((), dtype=torch.int64)


@functools.lru_cache(maxsize=_TENSORS)
def tap_numbers(number: int, behind: int) -> Tensor:
    """0, 1, … of so many taps, with so many dimensions of size 1 behind; floating point, and exact."""
    dtype = torch.float32 if number <= 2**24 else torch.float64
    return torch.arange(number, dtype=dtype).view(number, *(1,) * behind)


@functools.lru_cache(maxsize=_TENSORS)
def known_starts(geometry: PoolGeometry, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """`window_starts` in that type, and [*output] whether a window holds any input; None if all do."""
    full = torch.ones((), dtype=torch.bool)
    for axis in geometry.axes:
        column = [axis.taps_between(o, 0, axis.input) > 0 for o in range(axis.output)]
        full = full.unsqueeze(-1) & torch.tensor(column, dtype=torch.bool)
    return window_starts(geometry, torch.device("cpu")).to(dtype), None if full.all() else full


def window_starts(geometry: PoolGeometry, device: torch.device) -> Tensor:
    """The position of each window's first tap in the flattened input, [*output]: below index 0 it counts on."""
    starts = torch.zeros((), dtype=torch.int64, device=device)
    for axis in geometry.axes:
        o: Any = torch.arange(axis.output, device=device)
        starts = starts.unsqueeze(-1) * axis.input + axis.start(o)
    return starts


@functools.lru_cache(maxsize=_TENSORS)
def divisors(geometry: AvgGeometry, dtype: torch.dtype) -> Tensor:
    """What each window's sum is divided by: one number, or [*output]."""
    divisor = torch.tensor(geometry.divisor or 1)
    if not geometry.divisor:
        for column in geometry.counts():
            divisor = divisor.unsqueeze(-1) * torch.tensor(column)
        if divisor.numel() and (divisor == divisor.flatten()[0]).all():
            divisor = divisor.flatten()[0].clone()
    return divisor.to(dtype)


def _window(axis: Axis, o: int) -> slice:
    """The input's part of window `o`."""
    start = axis.start(o) + axis.first_tap(o) * axis.dilation
    return slice(start, start + axis.taps_between(o, 0, axis.input) * axis.dilation, axis.dilation)


@functools.lru_cache(maxsize=1024)
def axis_taps(axis: Axis) -> list[tuple[int, slice, slice, bool]]:
    """The taps of one dimension's windows: number, the outputs that have it, these inputs, and whether that is all."""
    taps = []
    for tap in range(axis.kernel):
        shift = tap * axis.dilation - axis.padding
        first = max(0, -(shift // axis.stride))
        last = min(axis.output - 1, (axis.input - 1 - shift) // axis.stride)
        if first <= last:
            start, stop = first * axis.stride + shift, last * axis.stride + shift + 1
            whole = last - first + 1 == axis.output
            taps.append((tap, slice(first, last + 1), slice(start, stop, axis.stride), whole))
    return taps
