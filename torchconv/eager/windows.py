"""Windows of a padded tensor as a strided view: the one indexing scheme of convolution and pooling, for any rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.geometry import ConvGeometry, PoolGeometry

Geometry = ConvGeometry | PoolGeometry


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def padded_size(geometry: Geometry) -> tuple[int, ...]:
    """The span of the lower padding, the input and all windows, which may reach beyond the input or end before it."""
    return tuple(
        max((o - 1) * s + (k - 1) * d + 1, p + i)
        for i, o, k, s, p, d in zip(
            geometry.input, geometry.output, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
        )
    )


def pad(x: Tensor, geometry: Geometry, value: float = 0) -> Tensor:
    """`x` [N, C, *input] as [N, C, *padded_size], filled up with `value`."""
    size = padded_size(geometry)
    if size == geometry.input:
        return x
    amounts = [(p, q - p - i) for i, p, q in zip(geometry.input, geometry.padding, size)]
    return F.pad(x, [a for pair in reversed(amounts) for a in pair], value=value)


def crop(padded: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of `pad`: the input's part of [N, C, *padded_size], as a view."""
    for dim, (size, start) in enumerate(zip(geometry.input, geometry.padding)):
        padded = padded.narrow(2 + dim, start, size)
    return padded


def windows(padded: Tensor, geometry: Geometry) -> Tensor:
    """View of [N, C, *padded_size] as [N, C, *kernel, *output]: [n, c, k, o] is padded[n, c, o·stride + k·dilation]."""
    n, c, *spatial = padded.stride()
    by_tap = (t * d for t, d in zip(spatial, geometry.dilation))
    by_output = (t * s for t, s in zip(spatial, geometry.stride))
    return padded.as_strided((*padded.shape[:2], *geometry.kernel, *geometry.output), (n, c, *by_tap, *by_output))


def taps(geometry: Geometry) -> Iterator[tuple[slice | int, ...]]:
    """Index of each tap into `windows`, in row-major order; it selects a strided slice [N, C, *output]."""
    for tap in itertools.product(*map(range, geometry.kernel)):
        yield (slice(None), slice(None), *tap)
