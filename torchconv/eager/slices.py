"""Which slices of the input pooling reads: one tap of all windows, or all taps of one window.

They depend on the geometry alone, and are kept for it.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv.geometry import Axis, PoolGeometry

_Index = tuple[Any, ...]


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
    taps = [(at(outputs), at(inputs), everywhere) for _, outputs, inputs, everywhere in _taps(axis)]
    return Pieces(taps, False, tile)


@functools.lru_cache(maxsize=256)
def tap_pieces(geometry: PoolGeometry) -> list[tuple[int, _Index, _Index, bool]]:
    """For each tap in row-major order: its number, the outputs that have it inside the input, these inputs, and
    whether that is all outputs."""
    pieces = []
    for taps in itertools.product(*map(_taps, geometry.axes)):
        number, everywhere = 0, True
        outputs: list[Any] = [slice(None), slice(None)]
        inputs: list[Any] = [slice(None), slice(None)]
        for dim, (axis, (tap, o, i, whole)) in enumerate(zip(geometry.axes, taps)):
            number, everywhere = number * axis.kernel + tap, everywhere and whole
            column = (-1, *(1,) * (geometry.rank - 1 - dim))
            outputs.append(o.view(column) if isinstance(o, Tensor) else o)
            inputs.append(i.view(column) if isinstance(i, Tensor) else i)
        pieces.append((number, tuple(outputs), tuple(inputs), everywhere))
    return pieces


@functools.lru_cache(maxsize=256)
def window_pieces(geometry: PoolGeometry) -> list[tuple[_Index, _Index, Tensor]]:
    """For each window that holds any input: its output, its inputs, and the numbers of these taps, in float32."""
    pieces = []
    for output in itertools.product(*(range(axis.output) for axis in geometry.axes)):
        numbers = torch.zeros((), dtype=torch.float32)
        for axis, o in zip(geometry.axes, output):
            first = axis.first_tap(o)
            inside = torch.arange(first, first + axis.taps_between(o, 0, axis.input), dtype=torch.float32)
            numbers = numbers.unsqueeze(-1) * axis.kernel + inside
        if numbers.numel():
            inputs = tuple(_window(axis, o) for axis, o in zip(geometry.axes, output))
            everything = (slice(None), slice(None))
            pieces.append(
                ((*everything, *(slice(o, o + 1) for o in output)), (*everything, *inputs), numbers),
            )
    return pieces


@functools.lru_cache(maxsize=256)
def first_taps(geometry: PoolGeometry) -> Tensor:
    """The number of each window's first tap that does not lie below index 0, [*output]; one 0 if all are that."""
    numbers = torch.zeros((), dtype=torch.int64)
    for axis in geometry.axes:
        column = [axis.first_tap(o) for o in range(axis.output)]
        numbers = numbers.unsqueeze(-1) * axis.kernel + torch.tensor(column, dtype=torch.int64)
    return numbers if numbers.any() else torch.zeros((), dtype=torch.int64)


def _window(axis: Axis, o: int) -> slice:
    """The input's part of window `o`."""
    start = axis.start(o) + axis.first_tap(o) * axis.dilation
    return slice(start, start + axis.taps_between(o, 0, axis.input) * axis.dilation, axis.dilation)


def _taps(axis: Axis) -> list[tuple[int, Any, Any, bool]]:
    """Each tap of a dimension's windows: the outputs that have it in the input, these inputs, and whether it is all."""
    taps: list[tuple[int, Any, Any, bool]] = []
    for tap in range(axis.kernel):
        if axis.adaptive:
            outputs = [o for o in range(axis.output) if tap < axis.taps_between(o, 0, axis.input)]
            inputs = [axis.start(o) + tap for o in outputs]
            if outputs:
                taps.append((tap, torch.tensor(outputs), torch.tensor(inputs), len(outputs) == axis.output))
            continue
        shift = tap * axis.dilation - axis.padding
        first = max(0, -(shift // axis.stride))
        last = min(axis.output - 1, (axis.input - 1 - shift) // axis.stride)
        if first <= last:
            start, stop = first * axis.stride + shift, last * axis.stride + shift + 1
            whole = last - first + 1 == axis.output
            taps.append((tap, slice(first, last + 1), slice(start, stop, axis.stride), whole))
    return taps
