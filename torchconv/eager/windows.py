"""Windows of a padded tensor, unrolled into the columns of a matrix: the indexing of convolution, for any rank.

They are unrolled in two steps, the last dimension first:

    rows[c, kw, n, h, ow]          = padded[n, c, h, ow·stride + kw·dilation]
    columns[kh, c, kw, n, oh, ow]  = rows[c, kw, n, oh·stride + kh·dilation, ow]

(for two dimensions; a third is treated like h).  The second step, which writes kh times as much, copies runs of oh·ow
elements where the stride is 1.  In one step every run is ow elements, 10 in LeNet's second convolution, which took 1.5
times as long.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.geometry import ConvGeometry


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def chunks(batch: int, elements: int, limit: int) -> Iterator[slice]:
    """Slices of the batch, alike but for the last: of at most `limit` elements, so many a sample, or of one sample."""
    number = -(-batch // max(1, limit // max(1, elements)))
    step = -(-batch // max(1, number))
    return (slice(start, start + step) for start in range(0, batch, step or 1))


def pad(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """`x` [N, C, *input] as [N, C, *padded]."""
    amounts = [(p, q - p - i) for i, p, q in zip(geometry.input, geometry.padding, geometry.padded)]
    if geometry.padding_mode == "zeros":
        return F.pad(x, [a for pair in reversed(amounts) for a in pair]) if any(map(any, amounts)) else x
    for dim, (size, (lower, upper)) in enumerate(zip(geometry.input, amounts)):
        position = torch.arange(-lower, size + upper, device=x.device)
        if geometry.padding_mode == "reflect":
            position = (size - 1) - ((size - 1) - position.abs()).abs()
        elif geometry.padding_mode == "replicate":
            position = position.clamp(0, size - 1)
        else:
            position = position % size
        x = x.index_select(2 + dim, position)
    return x


def crop(padded: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint of padding with zeros: the input's part of [N, C, *padded], as a view."""
    for dim, (size, start) in enumerate(zip(geometry.input, geometry.padding)):
        padded = padded.narrow(2 + dim, start, size)
    return padded


def rows(padded: Tensor, geometry: ConvGeometry) -> Tensor:
    """View of [N, C, *padded] with the last dimension unrolled: [G, C/G, kw, N, *padded but the last, ow]."""
    n, c, *outer, w = padded.stride()
    channels = padded.shape[1] // geometry.groups
    unrolled = (geometry.groups, channels, geometry.kernel[-1])
    strides = (c * channels, c, w * geometry.dilation[-1], n, *outer, w * geometry.stride[-1])
    return padded.as_strided((*unrolled, padded.shape[0], *geometry.padded[:-1], geometry.output[-1]), strides)


def columns(rows: Tensor, geometry: ConvGeometry) -> Tensor:
    """View of `rows` with the other dimensions unrolled too: [G, *kernel but the last, C/G, kw, N, *output]."""
    g, c, kw, n, *outer, w = rows.stride()
    by_tap = (t * d for t, d in zip(outer, geometry.dilation))
    by_output = (t * s for t, s in zip(outer, geometry.stride))
    size = (rows.shape[0], *geometry.kernel[:-1], *rows.shape[1:4], *geometry.output)
    return rows.as_strided(size, (g, *by_tap, c, kw, n, *by_output, w))
