"""Pooling in plain tensor algebra, for any rank: one dimension after the other, one window tap after the other.

A maximum over a window is the maximum of its rows' maxima, and a sum likewise, so a window of k × k elements costs 2·k
passes over ever smaller tensors instead of k².  Each pass reads a strided slice of its input: nothing is padded.

A winner is kept as the flat position of its tap in the window (`offset`), one byte for windows of up to 256 elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchconv.eager.windows import accumulation_dtype
from torchconv.geometry import AvgGeometry, Axis, PoolGeometry
from torchconv.layout import arranged, memory_format


def max_pool(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y[o] = max over taps k of x[o·s − p + k·d], and the offset of the winning tap.

    Of equal values the first wins; a NaN beats every number, and of several NaNs the last wins.  That holds along each
    dimension, hence for the row-major order of the whole window.
    """
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    # A window of nothing but the lowest value reports its first element inside the input.
    first = torch.zeros((), dtype=offset_dtype(geometry), device=x.device)
    y, offset, inner = x, first, 1
    for dim in reversed(range(geometry.rank)):
        axis = geometry.axes[dim]
        taps = [inner * axis.first_tap(o) for o in range(axis.output)]
        first = _column(taps, geometry.rank - 1 - dim, x.device).to(first.dtype) + first
        x, carried = y, offset
        size = _resized(x, dim, axis.output)
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format).fill_(lowest)
        offset = torch.empty(size, dtype=first.dtype, device=x.device, memory_format=format).copy_(first)
        for tap, outputs, inputs in _taps(axis, dim, x.dim() - 2, x.device):
            value, best = x[inputs], y[outputs]
            wins = value > best
            if x.is_floating_point():
                wins |= value != value
            y[outputs] = torch.where(wins, value, best)
            winner = tap * inner + (carried[inputs] if carried.dim() else carried)
            offset[outputs] = torch.where(wins, winner, offset[outputs])
        inner *= axis.kernel
    return y, offset


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = x[winner of window o]: the derivative of max pooling, as a linear map.  A window without input gives 0."""
    index, full = _winners(offset, geometry)
    y = x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    return arranged(y.mul_(full), format)


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] over the windows o whose winner is i: the adjoint of `max_pool_gather`."""
    index, full = _winners(offset, geometry)
    x = g.new_zeros((*g.shape[:2], math.prod(geometry.input)), dtype=accumulation_dtype(g.dtype))
    x.scatter_add_(2, index.flatten(2), (g * full).flatten(2).to(x.dtype))
    return arranged(x.view(*g.shape[:2], *geometry.input).to(g.dtype), format)


def avg_pool(x: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = Σ_k x[o·s − p + k·d] / divisor[o]."""
    y = x.to(accumulation_dtype(x.dtype))
    for dim in reversed(range(geometry.rank)):
        axis = geometry.axes[dim]
        row, y = y, torch.zeros(_resized(y, dim, axis.output), dtype=y.dtype, device=y.device)
        y = y.contiguous(memory_format=format)
        for _, outputs, inputs in _taps(axis, dim, geometry.rank, x.device):
            y[outputs] += row[inputs]
    return arranged(_divide(y, geometry).to(x.dtype), format)


def avg_pool_grad(g: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] / divisor[o] over the windows o that hold i: the adjoint of `avg_pool`."""
    x = _divide(g.to(accumulation_dtype(g.dtype)), geometry)
    for dim, axis in enumerate(geometry.axes):
        row, x = x, torch.zeros(_resized(x, dim, axis.input), dtype=x.dtype, device=x.device)
        x = x.contiguous(memory_format=format)
        for _, outputs, inputs in _taps(axis, dim, geometry.rank, g.device):
            if axis.adaptive:  # two windows can start at one position
                x.index_add_(2 + dim, inputs[2 + dim], row[outputs])
            else:
                x[inputs] += row[outputs]
    return arranged(x.to(g.dtype), format)


def offset_dtype(geometry: PoolGeometry) -> torch.dtype:
    """One byte per winner where it suffices."""
    return torch.uint8 if geometry.taps <= 256 else torch.int32


def winner_index(offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """The winners as torch reports them: int64 positions in the flattened input, [N, C, *output] as `offset`."""
    tap, digits = offset.long(), []
    for size in reversed(geometry.kernel):
        digits.append(tap % size)
        tap = tap // size
    index = tap  # all zeros by now
    for dim, (axis, digit) in enumerate(zip(geometry.axes, reversed(digits))):
        o: Any = torch.arange(axis.output, device=offset.device).view(-1, *(1,) * (geometry.rank - 1 - dim))
        index = index * axis.input + axis.start(o) + digit * axis.dilation
    return arranged(index, memory_format(offset))


def _winners(offset: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
    """`winner_index`, and [*output] whether the window holds any input; if not, its winner is position 0."""
    full = torch.ones((), dtype=torch.bool, device=offset.device)
    for axis in geometry.axes:
        column = [axis.taps_between(o, 0, axis.input) > 0 for o in range(axis.output)]
        full = full.unsqueeze(-1) & torch.tensor(column, dtype=torch.bool, device=offset.device)
    return winner_index(offset, geometry).mul_(full), full


def _divide(total: Tensor, geometry: AvgGeometry) -> Tensor:
    """`total` by each window's divisor; integers truncate, as C does."""
    divisor = torch.tensor(geometry.divisor or 1, device=total.device)
    if not geometry.divisor:
        for column in geometry.counts():
            divisor = divisor.unsqueeze(-1) * _indices(column, total.device)
    return torch.div(total, divisor, rounding_mode=None if total.is_floating_point() else "trunc")


def _taps(axis: Axis, dim: int, rank: int, device: torch.device) -> Iterator[tuple[int, Any, Any]]:
    """Each tap of a dimension's windows: the index of the outputs that have it in the input, and of these inputs."""

    def along(where: Any) -> tuple[Any, ...]:
        return (*(slice(None),) * (2 + dim), where, *(slice(None),) * (rank - 1 - dim))

    for tap in range(axis.kernel):
        if axis.adaptive:
            outputs = [o for o in range(axis.output) if tap < axis.taps_between(o, 0, axis.input)]
            inputs = [axis.start(o) + tap for o in outputs]
            yield tap, along(_indices(outputs, device)), along(_indices(inputs, device))
        else:
            shift = tap * axis.dilation - axis.padding
            first = max(0, -(shift // axis.stride))
            last = min(axis.output - 1, (axis.input - 1 - shift) // axis.stride)
            if first <= last:
                start = first * axis.stride + shift
                stop = last * axis.stride + shift + 1
                yield tap, along(slice(first, last + 1)), along(slice(start, stop, axis.stride))


def _column(values: list[int], trailing: int, device: torch.device) -> Tensor:
    """`values` along a dimension that `trailing` others follow."""
    return _indices(values, device).view(len(values), *(1,) * trailing)


def _indices(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _resized(x: Tensor, dim: int, size: int) -> tuple[int, ...]:
    """The shape of `x` with another size of spatial dimension `dim`."""
    return (*x.shape[: 2 + dim], size, *x.shape[3 + dim :])
