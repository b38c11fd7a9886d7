"""The fused block in plain tensor algebra: a part of the batch at a time, so no convolution output exists whole.

Windows tile the convolution's output, so what a window sees is a patch of the input, and the patches stand at steps of
pool·stride.  The convolution at each of a window's taps is a product with the same patch, the weight shifted in it:

    y[o] = relu(bias[o] + max over taps t of w_t[o] · patch),    w_t[k + t·stride] = w[k], elsewhere 0

So one convolution by larger steps with taps × O outputs makes the values of all taps side by side, and the maximum is
taken between dense tensors (LeCun et al. 1998 alternate the two layers; bias and ReLU ascend, so they come last).

The zeros are multiplied too, and an infinity by one of them is NaN.  So layers of many outputs, where multiplying is
what takes the time, and what is not finite are computed one layer after the other.  Figures: docs/performance.md.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from torchconv.eager import conv, pool
from torchconv.eager.precision import in_float32
from torchconv.eager.slices import tap_numbers
from torchconv.eager.windows import (
    accumulation_dtype,
    batches,
    by_group,
    cast,
    dense,
    in_scratch,
    piece,
    samples,
    scratch,
    settle,
    steps,
    windows,
    zero_total,
)
from torchconv.geometry import BlockGeometry, Ints
from torchconv.layout import arranged

# The winner of a window in which no element is positive: more than the taps of any window.
DEAD = 255

# Multiplications that take as long as moving an element.
_MOVE = 32


@in_scratch
@in_float32
def fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """y = max_pool(relu(x ∗ w + bias)) [N, O, *pooled], and each window's winning tap, or DEAD where y is 0."""
    size = (x.shape[0], w.shape[0], *geometry.pooled)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format)
    winner = torch.empty(size, dtype=torch.uint8, device=x.device, memory_format=format)
    if not (_by_patch(w.shape, geometry) and _fprop_by_patch(x, w, bias, y, winner, geometry)):
        for part in _parts(x.shape[0], w.shape[0], geometry):
            z = conv.fprop(x[part], w, bias, geometry.of_conv_alone(), format)
            values, taps = pool.max_pool(z, geometry.of_pool_alone(), format)
            dead = values <= 0
            y[part] = values.masked_fill_(dead, 0)
            winner[part] = taps.masked_fill_(dead, DEAD)
    return y, winner


def _fprop_by_patch(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, winner: Tensor, geometry: BlockGeometry
) -> bool:
    """`fprop` into `y` and `winner`, unless there is a NaN: whether it is done."""
    matrix = _shifted(w, geometry)
    for some in batches(_patches(geometry), *x.shape[:2]):
        inputs, outputs, winners = some.of(x), some.of(y), some.of(winner)
        for part in some.parts:
            target = by_group(outputs, part, geometry)  # [G, lead, O/G, N, *pooled]
            size = (*target.shape[:2], math.prod(geometry.pool), *target.shape[2:])
            values = scratch(size, "product", matrix.dtype)
            conv.multiply(matrix, windows(inputs, some.geometry, part), values)
            if bias is not None:
                values += cast(bias, values.dtype).view(geometry.groups, 1, 1, -1, *(1,) * (values.dim() - 4))
            if x.dtype != values.dtype:  # the convolution's output would be rounded before it is pooled
                values = values.to(x.dtype).to(values.dtype)
            best, *others = values.unbind(2)
            wins = scratch(target.shape, "wins", values.dtype)
            number = scratch(target.shape, "number", values.dtype).zero_()
            for tap, value in enumerate(others, start=1):
                # The taps ascend: of those that were greater than all before them, the last is the winner.
                torch.gt(value, best, out=wins)
                torch.maximum(best, value, out=best)
                torch.maximum(number, wins.mul_(tap), out=number)
            if math.isnan(best.sum()):
                return False
            # A value that is not positive counts as more taps than there are.
            torch.maximum(number, torch.le(best, 0, out=wins).mul_(DEAD), out=number)
            by_group(winners, part, geometry).copy_(number)
            target.copy_(best.relu_())
    return True


@in_scratch
@in_float32
def dgrad(g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled]."""
    channels = w.shape[1] * geometry.groups
    x = torch.empty((g.shape[0], channels, *geometry.input), dtype=g.dtype, device=g.device, memory_format=format)
    if _by_patch(w.shape, geometry) and _finite(g, w, geometry):
        matrix = _shifted(w, geometry).mT
        for some in batches(_patches(geometry), *x.shape[:2]):
            target = piece(x, some.samples)
            total = zero_total(target)
            for part in some.parts:
                pixels = _by_tap(some.of(g), some.of(winner), geometry, part)
                conv.add_adjoint(matrix, pixels, some.lift(total), some.geometry, part)
            settle(total, None, target)
    else:
        for part in _parts(g.shape[0], w.shape[0], geometry):
            z = _scattered(g[part], winner[part], geometry, format)
            x[part] = conv.dgrad(z, w, None, geometry.of_conv_alone(), format)
    return x


@in_scratch
@in_float32
def wgrad(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [O, C/groups, *kernel] and b̄ [O] of the pooled gradient g [N, O, *pooled]."""
    dtype, size = accumulation_dtype(g.dtype), (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    w, bias = g.new_zeros(size, dtype=dtype), g.new_zeros(size[0] if with_bias else 0, dtype=dtype)
    if _by_patch(w.shape, geometry) and _finite(g, x, geometry):
        matrix, places = _zeros(w, size, geometry)
        for some in batches(_patches(geometry), *x.shape[:2]):
            for part in some.parts:
                pixels = _by_tap(some.of(g), some.of(winner), geometry, part)
                conv.add_correlation(pixels, windows(some.of(x), some.geometry, part), matrix)
                if with_bias:
                    bias += pixels.unflatten(2, (math.prod(geometry.pool), -1)).sum((1, 2, 4)).flatten()
        w = places.sum(tuple(range(1, 1 + geometry.rank))).flatten(0, 1)
    else:
        for part in _parts(x.shape[0], size[0], geometry):
            z = _scattered(g[part].to(dtype), winner[part], geometry, format)
            sums = conv.wgrad(x[part].to(dtype), z, with_bias, geometry.of_conv_alone(), format)
            w, bias = w + sums[0], bias + sums[1]
    return arranged(cast(w, g.dtype), format), cast(bias, g.dtype)


# The patches of a block.
_patches = functools.lru_cache(maxsize=256)(BlockGeometry.of_patches)


@functools.lru_cache(maxsize=256)
def _by_patch(size: Ints, geometry: BlockGeometry) -> bool:
    """Whether patches take less time than one layer after the other; by numbers of each output's pixel."""
    elements, outputs = math.prod(size[1:]), size[0] // geometry.groups
    waste = math.prod(_patches(geometry).kernel) / math.prod(geometry.kernel)
    saved = elements * (1 - waste / math.prod(geometry.pool)) + outputs
    return (waste - 1) * elements * outputs <= _MOVE * saved


def _finite(g: Tensor, factor: Tensor, geometry: BlockGeometry) -> bool:
    """Whether a gradient by patch is that of one layer after the other: no 0 · ∞ comes up in one of them alone.

    By patch, an infinite `g` meets the zeros of the taps that lost; and of the zeros that are the gradient of what the
    windows leave over, none meets an infinite `factor`.
    """
    tiled = all(output % pool == 0 for output, pool in zip(geometry.output, geometry.pool))
    return bool(g.sum().isfinite()) and (tiled or bool(factor.sum().isfinite()))


def _shifted(w: Tensor, geometry: BlockGeometry) -> Tensor:
    """The weights of all taps as matrices: [G, taps·O/G, K]."""
    matrix, places = _zeros(w, w.shape, geometry)
    places.copy_(w.unflatten(0, (geometry.groups, *(1,) * geometry.rank, w.shape[0] // geometry.groups)))
    return matrix


def _zeros(like: Tensor, size: Ints, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
    """Zeros in the shape of `_shifted`, and the view [G, *pool, O/G, C/G, *kernel] of where they have the weight."""
    whole, shape, strides = _places(size, geometry)
    matrix = like.new_zeros(whole, dtype=accumulation_dtype(like.dtype))
    return matrix, matrix.as_strided(shape, strides)


@functools.lru_cache(maxsize=256)
def _places(size: Ints, geometry: BlockGeometry) -> tuple[Ints, Ints, Ints]:
    """The shape of `_shifted` for a weight of this size; the shape and strides of where the weight is in it.

    A tap further along a dimension is in another block of rows, and meets pixels of the patch `stride` further on.
    """
    outputs, channels, patch = size[0] // geometry.groups, size[1], _patches(geometry).kernel
    rows, columns = outputs * math.prod(geometry.pool), channels * math.prod(patch)
    pixel = [channels * step for step in steps(patch)]
    tap = [outputs * columns * step for step in steps(geometry.pool)]
    strides = (
        rows * columns,
        *(t + s * p for t, s, p in zip(tap, geometry.stride, pixel)),
        columns,
        1,
        *(d * p for d, p in zip(geometry.dilation, pixel)),
    )
    shape = (geometry.groups, *geometry.pool, outputs, channels, *geometry.kernel)
    return (geometry.groups, rows, columns), shape, strides


def _by_tap(g: Tensor, winner: Tensor, geometry: BlockGeometry, part: slice) -> Tensor:
    """The gradient of the values of all taps: `g` where a tap won, elsewhere 0; [G, lead, taps·O/G, P]."""
    share = conv.to_pixels(g, geometry, part)
    won = dense(by_group(winner, part, geometry), "winners", share.dtype).flatten(3)
    taps = math.prod(geometry.pool)
    values = scratch((*share.shape[:2], taps, *share.shape[2:]), "by tap", share.dtype)
    torch.eq(won.unsqueeze(2), cast(tap_numbers(taps, 2), share.dtype), out=values).mul_(share.unsqueeze(2))
    return values.flatten(2, 3)


def _scattered(g: Tensor, winner: Tensor, geometry: BlockGeometry, format: torch.memory_format) -> Tensor:
    """The gradient of a part of the convolution's output."""
    dead = winner == DEAD
    share, taps = g.masked_fill(dead, 0), winner.masked_fill(dead, 0)
    return pool.max_pool_scatter(share, taps, geometry.of_pool_alone(), format)


def _parts(batch: int, outputs: int, geometry: BlockGeometry) -> list[slice]:
    """Slices of the batch, for one layer after the other."""
    return samples(batch, outputs * math.prod(geometry.output))
