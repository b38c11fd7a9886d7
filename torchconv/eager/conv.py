"""The three products of a convolution as matrix products over windows, for any rank.

`windows` gives the im2col matrix as a *view*; a chunk of it at a time is copied and multiplied, so the extra memory
does not grow with the batch.  Half precision is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchconv.eager.windows import accumulation_dtype, crop, pad, taps, windows
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged

# Elements of one im2col chunk: 4 MiB in float32, so that what the copy writes is still in the cache for the product.
_CHUNK = 1 << 20


def fprop(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """y[n, o, p] = bias[o] + Σ_ck w[o, ck] · windows(x)[n, ck, p], for x [N, C, *in] and w [O, C/G, *k]."""
    dtype, groups = accumulation_dtype(x.dtype), geometry.groups
    pixels = math.prod(geometry.output)
    w_matrix = w.reshape(groups, w.shape[0] // groups, -1).to(dtype)  # [G, O/G, CK]
    b_column = None if bias is None else bias.to(dtype).view(groups, -1, 1)
    y = x.new_empty((x.shape[0], groups, w_matrix.shape[1], pixels))
    view = windows(pad(x, geometry), geometry)
    for part in _chunks(view):
        columns = view[part].to(dtype).reshape(-1, groups, w_matrix.shape[2], pixels)
        product = w_matrix @ columns
        y[part] = product if b_column is None else product.add_(b_column)
    return arranged(y.view(x.shape[0], w.shape[0], *geometry.output), format)


def dgrad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """x̄ = the adjoint of `fprop` in x: columns wᵀ·g, each added back to the window it stands for; [N, C, *in]."""
    dtype, groups = accumulation_dtype(g.dtype), geometry.groups
    n, pixels, channels = g.shape[0], math.prod(geometry.output), w.shape[1] * groups
    w_matrix = w.reshape(groups, w.shape[0] // groups, -1).to(dtype)  # [G, O/G, CK]
    g_matrix = g.reshape(n, groups, w_matrix.shape[1], pixels)
    padded = g.new_zeros((n, channels, *geometry.padded), dtype=dtype)
    view = windows(padded, geometry)
    for part in _chunks(view):
        columns = (w_matrix.mT @ g_matrix[part].to(dtype)).view(-1, channels, *geometry.kernel, *geometry.output)
        for tap in taps(geometry):
            view[part][tap] += columns[tap]
    x = crop(padded, geometry)
    if bias is not None:
        x += bias.view(-1, *(1,) * geometry.rank)
    return arranged(x.to(g.dtype), format)


def wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄[o, ck] = Σ_np g[n, o, p] · windows(x)[n, ck, p], of shape [O, C/G, *k], and b̄[o] = Σ_np g[n, o, p]."""
    dtype, groups, rank = accumulation_dtype(x.dtype), geometry.groups, geometry.rank
    outputs, channels = g.shape[1] // groups, x.shape[1] // groups
    w = g.new_zeros((groups, outputs, channels * math.prod(geometry.kernel)), dtype=dtype)
    view = windows(pad(x, geometry), geometry)
    # [G, CK, N, P] and [G, O/G, N, P]: batch and pixels side by side make one long reduction.
    view = view.unflatten(1, (groups, channels)).movedim(0, 2 + rank)
    g_matrix = g.reshape(g.shape[0], groups, outputs, math.prod(geometry.output)).movedim(0, 2)
    for part in _chunks(view, dim=2 + rank):
        columns = view.movedim(2 + rank, 0)[part].movedim(0, 2 + rank).to(dtype).reshape(*w.shape[::2], -1)
        w += g_matrix[:, :, part].to(dtype).reshape(groups, outputs, -1) @ columns.mT
    bias = g.sum((0, *range(2, 2 + rank)), dtype=dtype).to(g.dtype) if with_bias else g.new_empty(0)
    w = w.to(g.dtype).view(g.shape[1], channels, *geometry.kernel)
    return arranged(w, format), bias


def _chunks(view: Tensor, dim: int = 0) -> Iterator[slice]:
    """Slices of the batch, each of about `_CHUNK` elements of `view` and at least one sample."""
    n = view.shape[dim]
    if view.numel():
        step = max(1, _CHUNK * n // view.numel())
        yield from (slice(start, start + step) for start in range(0, n, step))
