"""Fractional max pooling, as in `torch.nn.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import FLOATS, Size, as_autocast, batched, check_channels, check_input
from torchconv.geometry import FractionalGeometry
from torchconv.integers import as_tuple

Ratio = float | Sequence[float]


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Max pooling of windows at random steps, as `torch.nn.functional.fractional_max_pool2d`.

        y[n, c, o] = max over taps k of input[n, c, start(o) + k]
        start(o) = ⌊(o + u)·α⌋ − ⌊u·α⌋, α = (H − kH) / (H' − 1), the last window at H − kH

    with a random number 0 ≤ u < 1 for every sample, channel and dimension (Graham 2014, "Fractional max-pooling").

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next.
        output_size: H' and W', in pixels.
        output_ratio: H'/H and W'/W, between 0 and 1, instead of `output_size`.
        return_indices: also return the winners' positions in the flattened [H·W] input, int64.
        _random_samples: the numbers u, [N, C, 2] (width before height, as torch has them); drawn here without it.

    Returns:
        [N, C, H', W'] or [C, H', W']; with `return_indices` a tuple of it and the indices.

    Raises:
        ValueError: neither an output size nor a ratio.
        RuntimeError: a size out of range, or samples that do not fit the input.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.fractional_max_pool2d(torch.randn(8, 16, 32, 32), 2, output_ratio=0.7).shape
        torch.Size([8, 16, 22, 22])
    """
    return _fractional(
        "fractional_max_pool2d", 2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """3-D fractional max pooling: `fractional_max_pool2d` with three spatial dimensions; samples in order [D, H, W].

    As torch's, it asks for H' + kH ≤ H, one pixel more than in 2-D.
    """
    return _fractional(
        "fractional_max_pool3d", 3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


def fractional_max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fractional_max_pool2d` with `return_indices=True`."""
    return _fractional("fractional_max_pool2d", 2, input, kernel_size, output_size, output_ratio, True, _random_samples)


def fractional_max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fractional_max_pool3d` with `return_indices=True`."""
    return _fractional("fractional_max_pool3d", 3, input, kernel_size, output_size, output_ratio, True, _random_samples)


def _fractional(
    name: str,
    rank: int,
    input: Tensor,
    kernel_size: Size,
    output_size: Size | None,
    output_ratio: Ratio | None,
    return_indices: bool,
    samples: Tensor | None,
) -> Any:
    check_input(name, input, FLOATS)
    if output_size is None and output_ratio is None:
        raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
    kernel = as_tuple(kernel_size, rank, "kernel_size")

    x = batched(name, rank, input)
    geometry = FractionalGeometry(tuple(x.shape[2:]), _output(x, rank, output_size, output_ratio), kernel)
    spare = 1 if rank == 3 else 0  # torch's rule
    for size, o, k in zip(geometry.input, geometry.output, kernel):
        if min(o, k) <= 0 or o + k - 1 + spare > size:
            raise RuntimeError(
                f"{name}(): kernel_size={kernel} and output size {geometry.output} are too large relative to "
                f"input of size {list(input.shape)}, or not positive: along each dimension "
                f"output + kernel - 1 must {'be less than' if spare else 'not exceed'} the input"
            )
    check_channels(name, x.shape)
    u = torch.rand(*x.shape[:2], rank, dtype=x.dtype, device=x.device) if samples is None else samples
    if tuple(u.shape) != (*x.shape[:2], rank) or u.dtype != x.dtype or u.device != x.device:
        raise RuntimeError(
            f"{name}(): expected _random_samples of size {[*x.shape[:2], rank]}, {x.dtype} and on {x.device}, as "
            f"the input, but got size {list(u.shape)}, {u.dtype} on {u.device}"
        )
    is_batch = x is input
    x, u = as_autocast(name, x), as_autocast(name, u)
    y, index = autograd.fractional_max_pool(x, _starts(u, geometry), geometry)
    if not is_batch:
        y, index = y.squeeze(0), index.squeeze(0)
    return (y, index) if return_indices else y


def _output(x: Tensor, rank: int, size: Size | None, ratio: Ratio | None) -> tuple[int, ...]:
    if size is not None:
        return as_tuple(size, rank, "output_size")
    ratios = tuple(ratio) if isinstance(ratio, Sequence) else (ratio,) * rank
    if len(ratios) != rank:
        raise ValueError(f"output_ratio must be a single float or {rank} floats, but got output_ratio={ratio}")
    return tuple(int(n * r) for n, r in zip(x.shape[2:], ratios))  # type: ignore[operator]


def _starts(u: Tensor, geometry: FractionalGeometry) -> Tensor:
    """Where the windows start, [N, C, Σ output] int64, one dimension after the other; rounded as torch rounds."""
    dims = range(len(geometry.kernel))
    # torch reads the samples of two dimensions as width, height and those of three as depth, height, width.
    columns = reversed(dims) if len(dims) == 2 else dims
    starts = []
    for column, size, outputs, kernel in zip(columns, geometry.input, geometry.output, geometry.kernel):
        sample, room = u[..., column, None], torch.tensor(size - kernel, dtype=u.dtype, device=u.device)
        o = torch.arange(outputs - 1, dtype=u.dtype, device=u.device)
        alpha = room / max(outputs - 1, 1)
        starts.append(((o + sample) * alpha).long() - (sample * alpha).long())
        starts.append(torch.full_like(sample, size - kernel, dtype=torch.int64))
    return torch.cat(starts, dim=-1)
