"""The fused block in plain tensor algebra: a part of the batch at a time, so no convolution output exists whole.

Windows tile the convolution's output, so what a window sees is a patch of the input, and the patches stand at steps of
pool·stride.  The convolution at each of a window's taps is a product with the same patch, the weight shifted in it:

    y[o] = relu(bias[o] + max over taps t of w_t[o] · patch),    w_t[k + t·stride] = w[k], elsewhere 0

So one convolution by larger steps with taps × O outputs makes the values of all taps side by side, and the maximum is
taken between dense tensors (LeCun et al. 1998 alternate the two layers; bias and ReLU ascend, so they come last).

Unrolled, 36 elements are copied for LeNet's 2×2 windows of 5×5, and 4 · 25 one layer after the other.  But the zeros
are multiplied too, and an infinity by one of them is NaN.  So layers of many outputs, where multiplying is what takes
the time, and what is not finite are computed one layer after the other.  With one thread, LeNet's first block takes
0.52 ms forward and 0.50 backward for 64 images, and took 0.86 and 0.81.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchconv.eager import conv, pool
from torchconv.eager.matmul import matmul
from torchconv.eager.windows import accumulation_dtype, chunks, crop
from torchconv.geometry import BlockGeometry
from torchconv.layout import arranged

# The winner of a window in which no element is positive: more than the taps of any window.
DEAD = 255

# Elements of one part of the convolution's output, where it is made: 4 MiB in float32.
_PART = 1 << 20
# Multiplications that take as long as moving an element.
_MOVE = 32


def fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y = max_pool(relu(x ∗ w + bias)) [N, O, *pooled], and each window's winning tap, or DEAD where y is 0."""
    size = (x.shape[0], w.shape[0], *geometry.pooled)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format)
    winner = torch.empty(size, dtype=torch.uint8, device=x.device, memory_format=format)
    by_patch, patches = _by_patch(w, geometry), geometry.of_patches()
    matrix = conv.to_matrix(_shifted(w, geometry), patches) if by_patch else w
    for part in _parts(x.shape[0], x.shape[1], w.shape[0], geometry, by_patch):
        if not (by_patch and _fprop_by_patch(x[part], matrix, bias, y[part], winner[part], geometry)):
            z = conv.fprop(x[part], w, bias, geometry.of_conv_alone(), format)
            values, taps = pool.max_pool(z, geometry.of_pool_alone(), format)
            dead = values <= 0
            y[part] = values.masked_fill_(dead, 0)
            winner[part] = taps.masked_fill_(dead, DEAD)
    return y, winner


def _fprop_by_patch(
    x: Tensor, matrix: Tensor, bias: Tensor | None, y: Tensor, winner: Tensor, geometry: BlockGeometry
) -> bool:
    """`fprop` of a part of the batch, into `y` and `winner`, unless there is a NaN: whether it is done."""
    taps = math.prod(geometry.pool)
    values = matmul(matrix, conv.to_columns(x, geometry.of_patches()))
    values = values.view(geometry.groups, taps, -1, values.shape[2])
    if bias is not None:
        values += bias.to(values.dtype).view(geometry.groups, 1, -1, 1)
    if x.dtype != values.dtype:  # the convolution's output would be rounded before it is pooled
        values = values.to(x.dtype).to(values.dtype)
    best, wins = values[:, 0], torch.empty_like(values[:, 0])
    number = torch.zeros_like(wins)
    for tap in range(1, taps):
        # The taps ascend: of those that were greater than all before them, the last is the winner.
        torch.gt(values[:, tap], best, out=wins)
        torch.maximum(best, values[:, tap], out=best)
        torch.maximum(number, wins.mul_(tap), out=number)
    if best.sum().isnan():
        return False
    # A value that is not positive counts as more taps than there are.
    torch.maximum(number, torch.le(best, 0, out=wins).mul_(DEAD), out=number)
    winner.copy_(_from_pixels(number, y))
    y.copy_(_from_pixels(best.relu_(), y))
    return True


def dgrad(g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled]."""
    channels = w.shape[1] * geometry.groups
    x = torch.empty((g.shape[0], channels, *geometry.input), dtype=g.dtype, device=g.device, memory_format=format)
    patches = geometry.of_patches()
    by_patch = _by_patch(w, geometry) and bool(g.sum().isfinite())
    matrix = conv.to_matrix(_shifted(w, geometry), patches).mT.contiguous() if by_patch else w
    for part in _parts(g.shape[0], channels, w.shape[0], geometry, by_patch):
        if by_patch:
            columns = matmul(matrix, _by_tap(g[part], winner[part], geometry))
            x[part] = crop(conv.from_columns(columns, patches), patches)
        else:
            z = _scattered(g[part], winner[part], geometry, format)
            x[part] = conv.dgrad(z, w, None, geometry.of_conv_alone(), format)
    return x


def wgrad(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel] and b̄ [O] of the pooled gradient g [N, O, *pooled]."""
    dtype, sums = accumulation_dtype(g.dtype), []
    size, patches = (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel), geometry.of_patches()
    if x.shape[0] == 0:
        return g.new_zeros(size).to(memory_format=format), g.new_zeros(size[0] if with_bias else 0)
    by_patch = _by_patch(g.new_empty(size), geometry) and bool(g.sum().isfinite())
    for part in _parts(x.shape[0], x.shape[1], g.shape[1], geometry, by_patch):
        if by_patch:
            pixels = _by_tap(g[part], winner[part], geometry)
            by_tap = pixels.view(geometry.groups, math.prod(geometry.pool), -1, pixels.shape[2])
            bias = by_tap.sum((1, 3)).flatten() if with_bias else pixels.new_empty(0)
            sums.append((matmul(pixels, conv.to_columns(x[part], patches).mT), bias))
        else:
            z = _scattered(g[part].to(dtype), winner[part], geometry, format)
            sums.append(conv.wgrad(x[part].to(dtype), z, with_bias, geometry.of_conv_alone(), format))
    w, bias = (functools.reduce(torch.add, parts) for parts in zip(*sums))
    if by_patch:
        shifted = (size[0] * math.prod(geometry.pool), size[1], *patches.kernel)
        w = _unshifted(conv.from_matrix(w, shifted, patches), geometry)
    return arranged(w.to(g.dtype), format), bias.to(g.dtype)


def _by_patch(w: Tensor, geometry: BlockGeometry) -> bool:
    """Whether patches take less time than one layer after the other; by numbers of each output's pixel."""
    elements, outputs = w[0].numel(), w.shape[0] // geometry.groups
    waste = math.prod(geometry.of_patches().kernel) / math.prod(geometry.kernel)
    saved = elements * (1 - waste / math.prod(geometry.pool)) + outputs
    return (waste - 1) * elements * outputs <= _MOVE * saved


def _taps(geometry: BlockGeometry) -> Iterator[tuple[int, Any]]:
    """The taps of a pooling window, and where each one has the weight in the patch."""
    sizes = list(zip(geometry.stride, geometry.kernel, geometry.dilation))
    for number, tap in enumerate(itertools.product(*map(range, geometry.pool))):
        window = (slice(t * s, t * s + (k - 1) * d + 1, d) for t, (s, k, d) in zip(tap, sizes))
        yield number, (Ellipsis, *window)


def _shifted(w: Tensor, geometry: BlockGeometry) -> Tensor:
    """The weights of all taps, [G·taps·O/G, C/G, *patch]."""
    outputs = w.shape[0] // geometry.groups
    size = (geometry.groups, math.prod(geometry.pool), outputs, w.shape[1], *geometry.of_patches().kernel)
    shifted = w.new_zeros(size)
    for number, window in _taps(geometry):
        shifted[:, number][window] = w.unflatten(0, (geometry.groups, outputs))
    return shifted.flatten(0, 2)


def _unshifted(shifted: Tensor, geometry: BlockGeometry) -> Tensor:
    """The adjoint of `_shifted`: [O, C/G, *kernel]."""
    by_tap = shifted.unflatten(0, (geometry.groups, math.prod(geometry.pool), -1))
    return functools.reduce(torch.add, (by_tap[:, number][window] for number, window in _taps(geometry))).flatten(0, 1)


def _by_tap(g: Tensor, winner: Tensor, geometry: BlockGeometry) -> Tensor:
    """The gradient of the values of all taps: `g` where a tap won, elsewhere 0; [G, taps·O/G, NP]."""
    share, won = (conv.to_pixels(t, geometry) for t in (g, winner.to(accumulation_dtype(g.dtype))))
    values = share.new_empty((geometry.groups, math.prod(geometry.pool), *share.shape[1:]))
    for tap in range(values.shape[1]):
        torch.eq(won, tap, out=values[:, tap]).mul_(share)
    return values.flatten(1, 2)


def _from_pixels(t: Tensor, like: Tensor) -> Tensor:
    """[G, O/G, NP] as `like` [N, O, *pooled], a view."""
    return t.reshape(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)


def _scattered(g: Tensor, winner: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """The gradient of a part of the convolution's output."""
    dead = winner == DEAD
    share, taps = g.masked_fill(dead, 0), winner.masked_fill(dead, 0)
    return pool.max_pool_scatter(share, taps, geometry.of_pool_alone(), format)


def _parts(batch: int, channels: int, outputs: int, geometry: BlockGeometry, by_patch: bool) -> Iterator[slice]:
    """Slices of the batch."""
    if by_patch:
        return conv.batch_chunks(batch, channels, geometry.of_patches())
    return chunks(batch, outputs * math.prod(geometry.output), _PART)
