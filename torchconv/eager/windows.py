"""Windows of a padded tensor, unrolled into the columns of a matrix: the indexing of convolution, for any rank.

They are unrolled in two steps, the last dimension first:

    rows[c, kw, h, n, ow]          = padded[n, c, h, ow·stride + kw·dilation]
    columns[kh, c, kw, oh, n, ow]  = rows[c, kw, oh·stride + kh·dilation, n, ow]

(for two dimensions; a third is treated like h).  The batch stands inside, so that the second step, which writes kh
times as much, copies long runs: oh·n·ow elements where the stride is 1.  In one step every run is ow elements, 10 in
LeNet's second convolution, which took 1.5 times as long.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.geometry import ConvGeometry


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


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
    """View of [N, C, *padded] with the last dimension unrolled: [G, C/G, kw, *padded but the last, N, ow]."""
    n, c, *outer, w = padded.stride()
    channels = padded.shape[1] // geometry.groups
    size = (
        *(geometry.groups, channels, geometry.kernel[-1]),
        *(*geometry.padded[:-1], padded.shape[0], geometry.output[-1]),
    )
    return padded.as_strided(size, (c * channels, c, w * geometry.dilation[-1], *outer, n, w * geometry.stride[-1]))


def columns(rows: Tensor, geometry: ConvGeometry) -> Tensor:
    """View of `rows` with the other dimensions unrolled too: [G, *kernel[:-1], C/G, kw, *output[:-1], N, ow]."""
    g, c, kw, *outer, n, w = rows.stride()
    by_tap = (t * d for t, d in zip(outer, geometry.dilation))
    by_output = (t * s for t, s in zip(outer, geometry.stride))
    size = (rows.shape[0], *geometry.kernel[:-1], *rows.shape[1:3], *geometry.output[:-1], *rows.shape[-2:])
    return rows.as_strided(size, (g, *by_tap, c, kw, *by_output, n, w))
