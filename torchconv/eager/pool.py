"""Pooling in plain tensor algebra, for any rank: one strided slice of the input per window tap.

A winner is kept as the flat position of its tap in the window (`offset`), one byte for windows of up to 256 elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchconv.eager.windows import accumulation_dtype, crop, pad, padded_size, taps, windows
from torchconv.geometry import AvgGeometry, PoolGeometry


def max_pool(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """y[o] = max over taps k of x[o·s − p + k·d], and the offset of the winning tap.

    Of equal values the first wins; a NaN beats every number, and of several NaNs the last wins.
    """
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    view = windows(pad(x, geometry, lowest), geometry)
    y = x.new_full((*x.shape[:2], *geometry.output), lowest)
    # A window of nothing but the lowest value reports its first element inside the input.
    offset = _first_taps(geometry, x.device).expand(y.shape).to(offset_dtype(geometry), copy=True)
    for flat, tap in enumerate(taps(geometry)):
        value = view[tap]
        wins = value > y
        if x.is_floating_point():
            wins |= value.isnan()
        y = torch.where(wins, value, y)
        offset.masked_fill_(wins, flat)
    return y.contiguous(memory_format=format), offset.contiguous(memory_format=format)


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = x[winner of window o]: the derivative of max pooling, as a linear map.  A window without input gives 0."""
    view = windows(pad(x, geometry), geometry)
    y = x.new_zeros((*x.shape[:2], *geometry.output))
    for flat, tap in enumerate(taps(geometry)):
        y = torch.where(offset == flat, view[tap], y)
    return y.contiguous(memory_format=format)


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] over the windows o whose winner is i: the adjoint of `max_pool_gather`."""
    padded = g.new_zeros((*g.shape[:2], *padded_size(geometry)), dtype=accumulation_dtype(g.dtype))
    view = windows(padded, geometry)
    for flat, tap in enumerate(taps(geometry)):
        view[tap] += torch.where(offset == flat, g, 0)
    return crop(padded, geometry).to(g.dtype).contiguous(memory_format=format)


def avg_pool(x: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """y[o] = Σ_k x[o·s − p + k·d] / divisor[o]."""
    view = windows(pad(x, geometry), geometry)
    y = x.new_zeros((*x.shape[:2], *geometry.output), dtype=accumulation_dtype(x.dtype))
    for tap in taps(geometry):
        y += view[tap]
    return _divide(y, geometry).to(x.dtype).contiguous(memory_format=format)


def avg_pool_grad(g: Tensor, geometry: AvgGeometry, format: torch.memory_format) -> Tensor:
    """x̄[i] = Σ g[o] / divisor[o] over the windows o that hold i: the adjoint of `avg_pool`."""
    dtype = accumulation_dtype(g.dtype)
    padded = g.new_zeros((*g.shape[:2], *padded_size(geometry)), dtype=dtype)
    view = windows(padded, geometry)
    share = _divide(g.to(dtype), geometry)
    for tap in taps(geometry):
        view[tap] += share
    return crop(padded, geometry).to(g.dtype).contiguous(memory_format=format)


def offset_dtype(geometry: PoolGeometry) -> torch.dtype:
    """One byte per winner where it suffices."""
    return torch.uint8 if geometry.taps <= 256 else torch.int32


def _first_taps(geometry: PoolGeometry, device: torch.device) -> Tensor:
    """Offset of each window's first tap inside the input, [*output]: the taps of the dimensions are its digits."""
    flat = torch.zeros((), dtype=torch.int64, device=device)
    for column, size in zip(geometry.first_taps(), geometry.kernel):
        flat = flat.unsqueeze(-1) * size + torch.tensor(column, device=device)
    return flat


def _divide(total: Tensor, geometry: AvgGeometry) -> Tensor:
    """`total` by each window's divisor; integers truncate, as C does."""
    divisor = torch.tensor(geometry.divisor or 1, device=total.device)
    if not geometry.divisor:
        for column in geometry.counts():
            divisor = divisor.unsqueeze(-1) * torch.tensor(column, device=total.device)
    return torch.div(total, divisor, rounding_mode=None if total.is_floating_point() else "trunc")
