"""The three products of a convolution as matrix products with the windows of its input, for any rank.

    fprop  y = w · windows(x)        dgrad  x̄ = its adjoint in x, wᵀ · g folded back        wgrad  w̄ = g · windows(x)ᵀ

One dimension leads (see `torchconv.eager.windows`), so each is a batch of products, one for each output along it.  A
part of the samples at a time, so that the extra memory does not grow with the batch.  Half precision is computed in
float32 and rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchconv.eager import depthwise
from torchconv.eager.depthwise import is_depthwise
from torchconv.eager.matmul import INTELS, add_product, add_sum_of_products, product
from torchconv.eager.precision import in_float32
from torchconv.eager.windows import (
    accumulation_dtype,
    batches,
    by_group,
    cast,
    dense,
    disjoint_windows,
    fold,
    in_scratch,
    is_pointwise,
    piece,
    scratch_like,
    settle,
    windows,
    zero_rows,
    zero_total,
)
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged

# Rows that a product is to have, and how many more columns it may have for their sake.  For 6 outputs 24 rows take 0.6
# of the time on an AMD EPYC (Zen 3), and 1.3 times as long on an Intel Xeon (AVX-512), which is as fast with few.
_ROWS = 1 if INTELS else 24
_MORE = 0.6


@in_scratch
@in_float32
def fprop(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """y[n, o, p] = bias[o] + Σ_kc w[o, kc] · windows(x)[kc, n, p], for x [N, C, *in] and w [O, C/G, *k]."""
    if is_depthwise(x.shape[1], geometry):
        return depthwise.fprop(x, w, bias, geometry, format)
    y = torch.empty((x.shape[0], w.shape[0], *geometry.output), dtype=x.dtype, device=x.device, memory_format=format)
    matrix = to_matrix(w, geometry)
    for some in batches(geometry, *x.shape[:2]):
        inputs, outputs = some.of(x), some.of(y)
        for part in some.parts:
            target = by_group(outputs, part, geometry)
            values = scratch_like(target, "product", matrix.dtype)
            multiply(matrix, windows(inputs, some.geometry, part), values)
            if bias is not None:
                values += cast(bias, values.dtype).view(geometry.groups, 1, -1, *(1,) * (values.dim() - 3))
            if values is not target:
                target.copy_(values)
    return y


@in_scratch
@in_float32
def dgrad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format) -> Tensor:
    """x̄ = the adjoint of `fprop` in x: rows wᵀ·g, each element added back to where it came from; [N, C, *in]."""
    channels = w.shape[1] * geometry.groups
    if is_depthwise(channels, geometry):
        return depthwise.dgrad(g, w, bias, geometry, format)
    x = torch.empty((g.shape[0], channels, *geometry.input), dtype=g.dtype, device=g.device, memory_format=format)
    matrix = to_matrix(w, geometry).mT
    for some in batches(geometry, g.shape[0], channels):
        target = piece(x, some.samples)
        total = zero_total(target)
        inputs, outputs = some.lift(total), some.of(g)
        for part in some.parts:
            add_adjoint(matrix, to_pixels(outputs, geometry, part), inputs, some.geometry, part)
        settle(total, bias, target)
    return x


@in_scratch
@in_float32
def wgrad(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """w̄[o, kc] = Σ_np g[o, n, p] · windows(x)[kc, n, p], of shape [O, C/G, *k], and b̄[o] = Σ_np g[n, o, p]."""
    if is_depthwise(x.shape[1], geometry):
        return depthwise.wgrad(x, g, with_bias, geometry, format)
    size = (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    rows = size[0] // geometry.groups
    matrix = g.new_zeros((geometry.groups, rows, math.prod(size[1:])), dtype=accumulation_dtype(g.dtype))
    bias = matrix.new_zeros(size[0] if with_bias else 0)
    for some in batches(geometry, *x.shape[:2]):
        inputs, outputs = some.of(x), some.of(g)
        for part in some.parts:
            pixels = to_pixels(outputs, geometry, part)
            add_correlation(pixels, windows(inputs, some.geometry, part), matrix)
            if with_bias:
                bias += pixels.sum((1, 3)).flatten()
    return arranged(cast(from_matrix(matrix, size), g.dtype), format), cast(bias, g.dtype)


def multiply(matrix: Tensor, columns: Tensor, out: Tensor) -> None:
    """out [G, lead, M, *] = matrix [G, M, K] · columns [G, lead, K, P], for each group and each output of the lead."""
    product(matrix, columns, out.view(*out.shape[:2], -1, columns.shape[3]))


def add_adjoint(matrix: Tensor, pixels: Tensor, x: Tensor, geometry: ConvGeometry, part: slice) -> None:
    """The adjoint of `x` ↦ matrixᵀ · windows(x), of pixels [G, lead, O/G, P], added to `x`; `matrix` is [G, K, O/G].

    `x` is zero where no earlier part has added to it.
    """
    if is_pointwise(geometry):  # no window shares its pixel: the product itself
        target = by_group(x, part, geometry)
        values = scratch_like(target, "product", matrix.dtype)
        multiply(matrix, pixels, values)
        if values is not target:
            target.copy_(values)
        return
    rows = zero_rows(pixels, x.shape[1], geometry)
    for outputs, columns in disjoint_windows(rows, geometry):
        add_product(matrix, pixels[:, outputs], columns)
    fold(rows, x, geometry, part)


def add_correlation(pixels: Tensor, columns: Tensor, out: Tensor) -> None:
    """out [G, O/G, K] += Σ pixels [G, lead, O/G, P] · columnsᵀ [G, lead, P, K], over the lead and P.

    Products of few rows are slow on most CPUs.  So where outputs are few, several windows in a row are taken as one:
    their columns are one matrix that begins a `step` later for each, and of the products of all their pixels with it,
    those of a window's own pixels and own columns are added up.
    """
    if out.numel() == 0:
        return
    groups, lead, outputs, _ = pixels.shape
    taps, step = out.shape[2], columns.stride(1) // columns.stride(2)
    number = min(-(-_ROWS // outputs), 1 + int(_MORE * taps) // step)
    whole = lead // number * number
    if number > 1 and whole:
        size = (groups, whole // number, taps + (number - 1) * step, columns.shape[3])
        strides = (columns.stride(0), number * columns.stride(1), *columns.stride()[2:])
        together = pixels[:, :whole].reshape(groups, size[1], number * outputs, size[3])
        sums = out.new_zeros(groups, number * outputs, size[2])
        add_sum_of_products(together, columns.as_strided(size, strides).mT, sums)
        own = (number * outputs * size[2], outputs * size[2] + step, size[2], 1)
        out += sums.as_strided((groups, number, outputs, taps), own).sum(1)
        pixels, columns = pixels[:, whole:], columns[:, whole:]
    if number == 1 or whole < lead:
        add_sum_of_products(pixels, columns.mT, out)


def to_pixels(g: Tensor, geometry: ConvGeometry, part: slice) -> Tensor:
    """These outputs of `g` [N, O, lead, *out] as matrices with the windows' columns: [G, lead, O/G, P]."""
    return dense(by_group(g, part, geometry), "pixels", accumulation_dtype(g.dtype)).flatten(3)


def to_matrix(w: Tensor, geometry: ConvGeometry) -> Tensor:
    """`w` [O, C/G, *k] as matrices with the windows' rows: [G, O/G, K], in the order *k, C/G."""
    by_tap = cast(w, accumulation_dtype(w.dtype)).permute(0, *range(2, w.dim()), 1)
    return by_tap.reshape(geometry.groups, w.shape[0] // geometry.groups, w.shape[1:].numel())


def from_matrix(matrix: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse of `to_matrix`, for a weight of this size, as a view."""
    return matrix.view(size[0], *size[2:], size[1]).movedim(-1, 1)
