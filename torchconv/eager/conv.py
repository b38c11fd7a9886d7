"""The three products of a convolution as matrix products over unrolled windows, for any rank.

    fprop  y = w · columns(x)        dgrad  x̄ = its adjoint in x, wᵀ · g folded back        wgrad  w̄ = g · columns(x)ᵀ

A chunk of the batch at a time is unrolled and multiplied, so the extra memory does not grow with the batch.  Half
precision is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchconv.eager.matmul import matmul
from torchconv.eager.windows import accumulation_dtype, chunks, crop, fold, pad, unroll
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged

# Elements of one chunk of columns: 4 MiB in float32, so that what the copy writes is still in the cache for the
# product.  A quarter of it takes LeNet's layers 1.2 to 1.6 times as long (more calls).
_CHUNK = 1 << 20


def fprop(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """y[n, o, p] = bias[o] + Σ_ck w[o, ck] · columns(x)[ck, n, p], for x [N, C, *in] and w [O, C/G, *k]."""
    y = torch.empty((x.shape[0], w.shape[0], *geometry.output), dtype=x.dtype, device=x.device, memory_format=format)
    matrix = to_matrix(w, geometry)
    zero_or_bias = matrix.new_zeros(()) if bias is None else bias.to(matrix.dtype).view(-1, *(1,) * geometry.rank)
    for part in batch_chunks(x.shape[0], x.shape[1], geometry):
        product = matmul(matrix, to_columns(x[part], geometry))
        torch.add(_from_pixels(product, geometry), zero_or_bias, out=y[part])
    return y


def dgrad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """x̄ = the adjoint of `fprop` in x: columns wᵀ·g, each added back to the window it stands for; [N, C, *in]."""
    channels = w.shape[1] * geometry.groups
    x = torch.empty((g.shape[0], channels, *geometry.input), dtype=g.dtype, device=g.device, memory_format=format)
    matrix = to_matrix(w, geometry).mT.contiguous()
    zero_or_bias = matrix.new_zeros(()) if bias is None else bias.to(matrix.dtype).view(-1, *(1,) * geometry.rank)
    for part in batch_chunks(g.shape[0], channels, geometry):
        padded = from_columns(matmul(matrix, to_pixels(g[part], geometry)), geometry)
        torch.add(crop(padded, geometry), zero_or_bias, out=x[part])
    return x


def wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄[o, ck] = Σ_np g[o, n, p] · columns(x)[ck, n, p], of shape [O, C/G, *k], and b̄[o] = Σ_np g[n, o, p]."""
    size = (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    matrix = torch.zeros_like(to_matrix(g.new_empty(size), geometry))
    bias = matrix.new_zeros(g.shape[1] if with_bias else 0)
    for part in batch_chunks(x.shape[0], x.shape[1], geometry):
        pixels = to_pixels(g[part], geometry)
        matrix += matmul(pixels, to_columns(x[part], geometry).mT)
        if with_bias:
            bias += pixels.sum(2).flatten()
    return arranged(from_matrix(matrix, size, geometry).to(g.dtype), format), bias.to(g.dtype)


def to_columns(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """`x` [N, C, *in] unrolled: [G, CK/G, NP]."""
    columns = unroll(pad(x.to(accumulation_dtype(x.dtype)), geometry), geometry)
    return columns.flatten(-geometry.rank - 1).flatten(1, -2)


def from_columns(columns: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint of `to_columns`, up to padding: [N, C, *padded] of [G, CK/G, NP]."""
    channels, batch = columns.shape[1] // math.prod(geometry.kernel), columns.shape[2] // math.prod(geometry.output)
    size = (geometry.groups, *geometry.kernel[:-1], channels, geometry.kernel[-1], batch, *geometry.output)
    return fold(columns.view(size), geometry)


def to_pixels(g: Tensor, geometry: ConvGeometry) -> Tensor:
    """`g` [N, O, *out] as a matrix with the columns' pixels: [G, O/G, NP]."""
    g = g.to(accumulation_dtype(g.dtype)).transpose(0, 1)
    return g.reshape(geometry.groups, g.shape[0] // geometry.groups, -1)


def _from_pixels(product: Tensor, geometry: ConvGeometry) -> Tensor:
    """The inverse of `to_pixels`, as a view."""
    return product.view(product.shape[0] * product.shape[1], -1, *geometry.output).transpose(0, 1)


def to_matrix(w: Tensor, geometry: ConvGeometry) -> Tensor:
    """`w` [O, C/G, *k] as a matrix with the columns' taps: [G, O/G, CK], in the order *kernel but the last, C/G, kw."""
    outputs = w.shape[0] // geometry.groups
    w = w.to(accumulation_dtype(w.dtype)).movedim(1, -2)
    return w.reshape(geometry.groups, outputs, w.shape[1:].numel())


def from_matrix(matrix: Tensor, size: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """The inverse of `to_matrix`, for a weight of this size, as a view."""
    return matrix.view(size[0], *geometry.kernel[:-1], size[1], geometry.kernel[-1]).movedim(-2, 1)


def batch_chunks(batch: int, channels: int, geometry: ConvGeometry) -> Iterator[slice]:
    """Slices of the batch, each of about `_CHUNK` elements of columns and at least one sample."""
    return chunks(batch, channels * math.prod(geometry.kernel) * math.prod(geometry.output), _CHUNK)
