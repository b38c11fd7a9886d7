"""Convolution with one input channel in each group: a product per tap, elementwise, for any rank.

    fprop  y = Σ_k w[k] · x[k-th of each window]        dgrad  its adjoint        wgrad  w̄[k] = Σ g · x[k-th of each]

A matrix with one row has nothing that a product could use again, so these are passes over whole channels, one for each
tap: of 64 channels of 56×56 pixels, 3×3 takes a tenth of the time of matrix products.  A channel may have several
outputs, M of them; sums are kept as in `torchconv.eager.conv`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchconv.eager.slices import axis_taps
from torchconv.eager.windows import (
    accumulation_dtype,
    cast,
    chunks,
    last,
    padded,
    piece,
    samples,
    scratch,
    settle,
    zero_total,
)
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged

# Elements of the products that are added up before they are summed: 1 MiB in float32.
_PRODUCT = 1 << 18


def is_depthwise(channels: int, geometry: ConvGeometry) -> bool:
    """Whether each of several groups has one input channel."""
    return channels == geometry.groups > 1


def fprop(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """y [N, G·M, *out] of x [N, G, *in] and w [G·M, 1, *k]."""
    y = torch.empty((x.shape[0], w.shape[0], *geometry.output), dtype=x.dtype, device=x.device, memory_format=format)
    for some in _batches(x.shape[0], geometry):
        target = piece(y, some)
        total = zero_total(target)
        inputs, outputs = _padded(piece(x, some), geometry), _by_channel(total, geometry)
        for tap, windows in _windows(geometry):
            outputs.addcmul_(inputs[windows], _weight(w, tap, geometry))
        settle(total, bias, target)
    return y


def dgrad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """x̄ [N, G, *in] of g [N, G·M, *out]."""
    x = torch.empty(
        (g.shape[0], geometry.groups, *geometry.input), dtype=g.dtype, device=g.device, memory_format=format
    )
    for some in _batches(g.shape[0], geometry):
        target = piece(x, some)
        total = zero_total(target)
        outputs = _by_channel(cast(piece(g, some), total.dtype), geometry)
        for taps in itertools.product(*map(axis_taps, geometry.axes)):
            tap, of, to, _ = zip(*taps)
            seen, met, weights = outputs[last(of)], total[last(to)], _weight(w, tap, geometry)
            for multiple in range(outputs.shape[2]):
                met.addcmul_(seen[:, :, multiple], weights[:, multiple])
        settle(total, bias, target)
    return x


def wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [G·M, 1, *k] and b̄ [G·M] of x [N, G, *in] and g [N, G·M, *out]."""
    dtype, sums = accumulation_dtype(g.dtype), (0, *range(3, 3 + geometry.rank))
    w = g.new_zeros((geometry.groups, g.shape[1] // geometry.groups, *geometry.kernel), dtype=dtype)
    bias = w.new_zeros(g.shape[1] if with_bias else 0)
    for some in _batches(x.shape[0], geometry):
        inputs, outputs = _padded(piece(x, some), geometry), _by_channel(cast(piece(g, some), dtype), geometry)
        first, *others = chunks(outputs.shape[0], outputs[:1].numel(), _PRODUCT)
        product = scratch(outputs[first].shape, "product", dtype)
        for tap, windows in _windows(geometry):
            seen = inputs[windows]
            torch.mul(seen[first], outputs[first], out=product)
            for other in others:
                product[: other.stop - other.start].addcmul_(seen[other], outputs[other])
            w[last(tap)] += product.sum(sums)
        if with_bias:
            bias += outputs.sum(sums).flatten()
    return arranged(w.flatten(0, 1).unsqueeze(1).to(g.dtype), format), bias.to(g.dtype)


def _batches(batch: int, geometry: ConvGeometry) -> list[slice]:
    return samples(batch, geometry.groups * math.prod(geometry.padded))


def _by_channel(t: Tensor, geometry: ConvGeometry) -> Tensor:
    """[N, G·M, *] as [N, G, M, *]."""
    return t.unflatten(1, (geometry.groups, t.shape[1] // geometry.groups))


def _padded(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """[N, G, *in] with its padding, as [N, G, 1, *]."""
    return padded(x, geometry, slice(0, geometry.output[0])).unsqueeze(2)


def _weight(w: Tensor, tap: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """A tap of the weight [G·M, 1, *k], as [G, M, 1, …]."""
    values = w[last(tap)].to(accumulation_dtype(w.dtype))
    return values.reshape(geometry.groups, -1, *(1,) * geometry.rank)


def _windows(geometry: ConvGeometry) -> Iterator[tuple[tuple[int, ...], Any]]:
    """The taps of a window, and where all outputs meet each of them in the padded input."""
    for tap in itertools.product(*map(range, geometry.kernel)):
        sizes = zip(tap, geometry.output, geometry.stride, geometry.dilation)
        windows = (slice(t * d, t * d + (o - 1) * s + 1, s) for t, o, s, d in sizes)
        yield tap, last(windows)
