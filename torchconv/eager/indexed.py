"""Pooling by explicit winners: int64 positions in the flattened input, as torch reports and takes them.

This is tensor algebra on every device, and the same bits every time: where several windows name one position, their
order is made explicit by sorting.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from torchconv.eager.windows import accumulation_dtype
from torchconv.geometry import FractionalGeometry, IndexGeometry
from torchconv.layout import arranged


def fractional_max_pool(
    x: Tensor, starts: Tensor, geometry: FractionalGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y[n, c, o] = max over taps k of x[n, c, start[n, c, o] + k], and the winner's position; ties as in max pooling.

    `starts` [N, C, Σ output] holds the windows' first positions, one dimension's after the other's.
    """
    flat, rank = x.flatten(2), len(geometry.kernel)
    columns = [
        start.view(*start.shape[:2], *(1,) * dim, start.shape[2], *(1,) * (rank - 1 - dim))
        for dim, start in enumerate(starts.split(geometry.output, dim=2))
    ]
    size = (*x.shape[:2], *geometry.output)
    y, index = x.new_full(size, -float("inf")), torch.zeros(size, dtype=torch.int64, device=x.device)
    for number, tap in enumerate(itertools.product(*map(range, geometry.kernel))):
        position = torch.zeros((), dtype=torch.int64, device=x.device)
        for column, k, length in zip(columns, tap, geometry.input):
            position = position * length + column + k
        value = flat.gather(2, position.flatten(2)).view(size)
        # A window of nothing but -inf reports its first element.
        wins = (value > y) | value.isnan() | (number == 0)
        y, index = torch.where(wins, value, y), torch.where(wins, position, index)
    return arranged(y, format), arranged(index, format)


def index_gather(x: Tensor, index: Tensor, geometry: IndexGeometry, format: torch.memory_format) -> Tensor:
    """y[n, c, o] = x[n, c, index[n, c, o]]; y is of `index`'s shape."""
    _check(index, geometry)
    return arranged(x.flatten(2).gather(2, index.flatten(2)).view(index.shape), format)


def index_scatter(g: Tensor, index: Tensor, geometry: IndexGeometry, format: torch.memory_format) -> Tensor:
    """x̄[n, c, i] = Σ g[n, c, o] over the o with index[n, c, o] = i, in their order: the adjoint of `index_gather`."""
    _check(index, geometry)
    pixels, dtype = math.prod(geometry.input), accumulation_dtype(g.dtype)
    x = g.new_zeros((*g.shape[:2], pixels), dtype=dtype)
    if g.is_cuda:
        # scatter_add_ adds with atomics there; index_put_ sorts first.
        rows = torch.arange(g.shape[0] * g.shape[1], device=g.device).unsqueeze(1) * pixels
        flat = (index.flatten(0, 1).flatten(1) + rows).flatten()
        x.view(-1).index_put_((flat,), g.to(dtype).reshape(-1), accumulate=True)
    else:
        x.scatter_add_(2, index.flatten(2), g.flatten(2).to(dtype))
    return arranged(x.view(*g.shape[:2], *geometry.input).to(g.dtype), format)


def max_unpool(x: Tensor, index: Tensor, geometry: IndexGeometry, format: torch.memory_format) -> Tensor:
    """y[n, c, index[n, c, o]] = x[n, c, o], the last o if several name one position; 0 where none does."""
    _check(index, geometry)
    pixels = math.prod(geometry.input)
    ordered, order = index.flatten(2).sort(dim=2, stable=True)
    # The last of each run of equal positions writes; the others write to one position too many, cut off below.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[..., :-1] = ordered[..., 1:] != ordered[..., :-1]
    y = x.new_zeros((*x.shape[:2], pixels + 1))
    y.scatter_(2, torch.where(last, ordered, pixels), x.flatten(2).gather(2, order))
    return arranged(y[..., :pixels].view(*x.shape[:2], *geometry.input), format)


def _check(index: Tensor, geometry: IndexGeometry) -> None:
    pixels = math.prod(geometry.input)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < pixels:
        worst = int(index.min()) if int(index.min()) < 0 else int(index.max())
        size = " x ".join(map(str, geometry.input))
        raise RuntimeError(f"found an invalid max index: {worst} (output volumes are of size {size})")
