"""Convolution with one input channel in each group: a product per tap, elementwise, for any rank.

A matrix with one row has nothing that a product could use again, so these are passes over whole channels, one for each
tap k.  For a pass to be one long run through memory, and not one for each row of a picture, channels lie *flat*: the
input with its padding, and every output where its window begins.  Then a tap of all windows is one run, begun later:

    fprop  y[j] += w[k] · x[start(k) + j]        dgrad  x̄[start(k) + j] += w[k] · g[j]
    wgrad  w̄[k] = Σ_j g[j] · x[start(k) + j]

Where no window begins, at the ends of rows, nobody reads y, and g is zero; where 0 · ∞ would make that NaN, it goes row
by row.  With a stride s the positions are dealt out to s *phases*, position q·s + r as the q-th of phase r, and a tap
meets one of them; those that no tap meets are left out.  Of 64 channels of 56×56 pixels 3×3 takes two thirds of the
time that it takes row by row, and in channels_last half; where windows do not overlap, the copies take more than that.
A channel may have several outputs, M of them; sums are kept as in `torchconv.eager.conv`.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv.eager.slices import axis_taps
from torchconv.eager.windows import (
    accumulation_dtype,
    cast,
    ends,
    last,
    padded,
    piece,
    samples_and_channels,
    scratch,
    steps,
)
from torchconv.geometry import ConvGeometry, Ints
from torchconv.layout import arranged

# Elements of the flat channels that are taken at a time, 0.5 MB in float32: they stay in the second-level cache.
_CHUNK = 1 << 17


def is_depthwise(channels: int, geometry: ConvGeometry) -> bool:
    """Whether each of several groups has one input channel."""
    return channels == geometry.groups > 1


class _Layout(NamedTuple):
    """How a channel lies flat.

    Attributes:
        size: positions of a phase along each dimension.
        phases: how many phases are met.
        inputs: of each of them that holds some of the input its number, the positions that do, and the input there.
        whole: whether that is all of the input.
        outputs: the positions of the outputs.
        run: how far it is from the first output to behind the last.
        starts: where each tap of the first window lies, in all phases one after the other.
    """

    size: Ints
    phases: int
    inputs: list[tuple[int, Any, Any]]
    whole: bool
    outputs: Any
    run: int
    starts: list[int]


@functools.lru_cache(maxsize=256)
def _layout(geometry: ConvGeometry) -> _Layout:
    if geometry.padding_mode != "zeros":  # the padding is input as well, as far as windows see it
        seen = tuple(high - low for low, high in ends(geometry, 0, geometry.output[0]))
        geometry = replace(geometry.of_padded(), input=seen)
    size = tuple(-(-axis.padded // axis.stride) for axis in geometry.axes)
    by_phase, by_position = steps(geometry.stride), steps(size)
    starts, met = [], dict[int, int]()
    for tap in itertools.product(*map(range, geometry.kernel)):
        places = [divmod(k * d, s) for k, d, s in zip(tap, geometry.dilation, geometry.stride)]
        phase = _at((r for _, r in places), by_phase)
        starts.append(met.setdefault(phase, len(met)) * math.prod(size) + _at((q for q, _ in places), by_position))
    inputs, whole = [], True
    dealt = [axis._replace(output=q, kernel=axis.stride, dilation=1) for axis, q in zip(geometry.axes, size)]
    for taps in itertools.product(*map(axis_taps, dealt)):
        place, positions, of, _ = zip(*taps)
        number = met.get(_at(place, by_phase))
        if number is None:
            whole = False
        else:
            inputs.append((number, positions, last(of)))
    run = 1 + _at((o - 1 for o in geometry.output), by_position)
    return _Layout(size, len(met), inputs, whole, last(map(slice, geometry.output)), run, starts)


def _at(position: Iterable[int], by: Ints) -> int:
    """The number of a position, of which one more along each dimension is so many."""
    return sum(map(operator.mul, position, by))


class _Chunk(NamedTuple):
    """Some channels of some samples, flat.

    Attributes:
        layout: how they lie.
        samples, channels: which ones.
        inputs: [n, c, phases, *size].
        outputs: [n, c, M, *size].
    """

    layout: _Layout
    samples: slice
    channels: slice
    inputs: Tensor
    outputs: Tensor

    def of(self, t: Tensor) -> Tensor:
        """These channels of these samples of [N, G, *]: a view."""
        return piece(piece(t, self.samples), self.channels, 1)

    def views(self, flat: bool = True) -> tuple[Tensor, list[Tensor]]:
        """The outputs [n, c, M, *], and of each tap what they meet [n, c, 1, *].

        Flat, they are [run], with what lies between the outputs; else [*out], without that.
        """
        size: Ints = (self.layout.run,) if flat else self.outputs[self.layout.outputs].shape[3:]
        step = (1,) if flat else steps(self.layout.size)

        def view(t: Tensor, start: int) -> Tensor:
            return t.as_strided((*t.shape[:3], *size), (*t.stride()[:3], *step), t.storage_offset() + start)

        inputs = self.inputs.flatten(2).unsqueeze(2)
        return view(self.outputs, 0), [view(inputs, start) for start in self.layout.starts]

    def lay_inputs(self, x: Tensor, geometry: ConvGeometry) -> None:
        """Copy these of x [N, G, *in] to where they belong."""
        x = self.of(x)
        if geometry.padding_mode != "zeros":
            x = padded(x, geometry, slice(0, geometry.output[0]))
        for phase, positions, of in self.layout.inputs:
            self.inputs[last((phase, *positions))] = x[of]

    def lay_outputs(self, g: Tensor) -> None:
        """Copy these of g [N, G, M, *out] to where they belong."""
        self.outputs[self.layout.outputs] = self.of(g)


def _flat(batch: int, multiple: int, geometry: ConvGeometry, dtype: torch.dtype) -> Iterator[_Chunk]:
    """All channels of all samples, in chunks in the same memory, which is zero where none of them has written."""
    layout, groups = _layout(geometry), geometry.groups
    memory: list[Tensor] = []
    elements = max(layout.phases, multiple) * math.prod(layout.size)
    for samples, channels in samples_and_channels(batch, groups, elements, _CHUNK):
        number = (samples.stop - samples.start, channels.stop - channels.start)
        if not memory:  # the first chunk is the largest
            for name, of_each in ("inputs", layout.phases), ("outputs", multiple):
                memory.append(scratch((math.prod(number), of_each, *layout.size), name, dtype).zero_())
        yield _Chunk(layout, samples, channels, *(t[: math.prod(number)].unflatten(0, number) for t in memory))


def fprop(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """y [N, G·M, *out] of x [N, G, *in] and w [G·M, 1, *k]."""
    y = torch.empty((x.shape[0], w.shape[0], *geometry.output), dtype=x.dtype, device=x.device, memory_format=format)
    results, weights = _by_channel(y, geometry), _weights(w, geometry)
    size = weights.shape[1:]  # [G, M, 1]
    first = weights.new_zeros(size) if bias is None else cast(bias, weights.dtype).view(size)
    for chunk in _flat(x.shape[0], results.shape[2], geometry, weights.dtype):
        chunk.lay_inputs(x, geometry)
        outputs, taps = chunk.views()
        total = first[chunk.channels]
        for seen, weight in zip(taps, weights[:, chunk.channels]):
            total = torch.addcmul(total, seen, weight, out=outputs)
        chunk.of(results).copy_(chunk.outputs[chunk.layout.outputs])
    return y


def dgrad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """x̄ [N, G, *in] of g [N, G·M, *out]."""
    size = (g.shape[0], geometry.groups, *geometry.input)
    x = torch.empty(size, dtype=g.dtype, device=g.device, memory_format=format)
    given, weights = _by_channel(g, geometry), _weights(w, geometry)
    first = weights.new_zeros(1) if bias is None else cast(bias, weights.dtype).view(-1, *(1,) * geometry.rank)
    if not _layout(geometry).whole:
        x.copy_(first)
    flat = bool(weights.isfinite().all())
    for chunk in _flat(g.shape[0], given.shape[2], geometry, weights.dtype):
        chunk.lay_outputs(given)
        if bias is None:
            chunk.inputs.zero_()
        else:
            chunk.inputs.copy_(first[chunk.channels].unsqueeze(1))
        outputs, taps = chunk.views(flat)
        by_output = weights[:, chunk.channels].unflatten(3, (1,) * (outputs.dim() - 3)).split(1, 2)
        for run, of_taps in zip(outputs.split(1, 2), by_output):
            for met, weight in zip(taps, of_taps):
                met.addcmul_(run, weight)
        results = chunk.of(x)
        for phase, positions, of in chunk.layout.inputs:
            results[of] = chunk.inputs[last((phase, *positions))]
    return x


def wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄ [G·M, 1, *k] and b̄ [G·M] of x [N, G, *in] and g [N, G·M, *out]."""
    for flat in (True, False):
        sums, bias = _correlation(x, g, with_bias, geometry, flat)
        if sums.isfinite().all():
            break
    w = sums.movedim(0, -1).reshape(g.shape[1], 1, *geometry.kernel)
    return arranged(cast(w, g.dtype), format), cast(bias, g.dtype)


def _correlation(x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, flat: bool) -> tuple[Tensor, Tensor]:
    """The gradients by tap [taps, G, M], and of the bias [G·M], in the type of sums."""
    given, dtype = _by_channel(g, geometry), accumulation_dtype(g.dtype)
    w = g.new_zeros((math.prod(geometry.kernel), *given.shape[1:3]), dtype=dtype)
    bias = w.new_zeros(given.shape[1:3] if with_bias else 0)
    for chunk in _flat(x.shape[0], given.shape[2], geometry, dtype):
        chunk.lay_inputs(x, geometry)
        chunk.lay_outputs(given)
        outputs, taps = chunk.views(flat)
        product = scratch(outputs.shape, "product", dtype)
        sums = [torch.mul(seen, outputs, out=product).flatten(3).sum((0, 3)) for seen in taps]
        w[:, chunk.channels] += torch.stack(sums)
        if with_bias:
            bias[chunk.channels] += outputs.flatten(3).sum((0, 3))
    return w, bias.flatten()


def _by_channel(t: Tensor, geometry: ConvGeometry) -> Tensor:
    """[N, G·M, *] as [N, G, M, *]."""
    return t.unflatten(1, (geometry.groups, t.shape[1] // geometry.groups))


def _weights(w: Tensor, geometry: ConvGeometry) -> Tensor:
    """w [G·M, 1, *k] by tap, in the type of sums, [taps, G, M, 1]."""
    values = w.to(accumulation_dtype(w.dtype)).reshape(geometry.groups, -1, math.prod(geometry.kernel))
    return values.movedim(-1, 0).unsqueeze(-1)
