"""The fused block in plain tensor algebra: a part of the batch at a time, so no convolution output exists whole."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchconv.eager import conv, pool
from torchconv.eager.windows import accumulation_dtype
from torchconv.geometry import BlockGeometry
from torchconv.layout import arranged

# The winner of a window in which no element is positive: more than the taps of any window.
DEAD = 255

# Elements of one part of the convolution's output: 4 MiB in float32.
_PART = 1 << 20


def fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y = max_pool(relu(x ∗ w + bias)) [N, O, *pooled], and each window's winning tap, or DEAD where y is 0."""
    size = (x.shape[0], w.shape[0], *geometry.pooled)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format)
    winner = torch.empty(size, dtype=torch.uint8, device=x.device, memory_format=format)
    for part in _parts(x.shape[0], w.shape[0], geometry):
        z = conv.fprop(x[part], w, bias, geometry.of_conv_alone(), format)
        values, taps = pool.max_pool(z, geometry.of_pool_alone(), format)
        dead = values <= 0
        y[part] = values.masked_fill_(dead, 0)
        winner[part] = taps.masked_fill_(dead, DEAD)
    return y, winner


def dgrad(g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled]."""
    size = (g.shape[0], w.shape[1] * geometry.groups, *geometry.input)
    x = torch.empty(size, dtype=g.dtype, device=g.device, memory_format=format)
    for part in _parts(g.shape[0], w.shape[0], geometry):
        z = _scattered(g[part], winner[part], geometry, format)
        x[part] = conv.dgrad(z, w, None, geometry.of_conv_alone(), format)
    return x


def wgrad(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel] and b̄ [O] of the pooled gradient g [N, O, *pooled]."""
    dtype, sums = accumulation_dtype(g.dtype), []
    for part in _parts(g.shape[0], g.shape[1], geometry):
        z = _scattered(g[part].to(dtype), winner[part], geometry, format)
        sums.append(conv.wgrad(x[part].to(dtype), z, with_bias, geometry.of_conv_alone(), format))
    w, bias = (functools.reduce(torch.add, parts) for parts in zip(*sums))
    return arranged(w.to(g.dtype), format), bias.to(g.dtype)


def _scattered(g: Tensor, winner: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """The gradient of a part of the convolution's output."""
    alive = winner != DEAD
    return pool.max_pool_scatter(g * alive, winner * alive, geometry.of_pool_alone(), format)


def _parts(samples: int, channels: int, geometry: BlockGeometry) -> Iterator[slice]:
    """Slices of the batch, at least one, of about `_PART` elements of the convolution's output."""
    step = max(1, _PART // max(1, channels * math.prod(geometry.output)))
    yield from (slice(start, start + step) for start in range(0, max(1, samples), step))
