"""Windows of a padded tensor as a strided view: the indexing of convolution, for any rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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


def windows(padded: Tensor, geometry: ConvGeometry) -> Tensor:
    """View of [N, C, *padded] as [N, C, *kernel, *output]: [n, c, k, o] is padded[n, c, o·stride + k·dilation]."""
    n, c, *spatial = padded.stride()
    by_tap = (t * d for t, d in zip(spatial, geometry.dilation))
    by_output = (t * s for t, s in zip(spatial, geometry.stride))
    return padded.as_strided((*padded.shape[:2], *geometry.kernel, *geometry.output), (n, c, *by_tap, *by_output))


def taps(geometry: ConvGeometry) -> Iterator[tuple[slice | int, ...]]:
    """Index of each tap into `windows`, in row-major order; it selects a strided slice [N, C, *output]."""
    for tap in itertools.product(*map(range, geometry.kernel)):
        yield (slice(None), slice(None), *tap)
