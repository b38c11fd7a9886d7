"""What the functions of this package share before any work: types of arguments, and the batch dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# The poolings that torch's autocast computes in float32: on CPUs alone, and `max_pool3d` without its indices alone.
_FLOAT32_UNDER_AUTOCAST = {
    "avg_pool3d",
    "lp_pool3d",
    "adaptive_avg_pool3d",
    "max_pool3d",
    "adaptive_max_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
}


class RankError(RuntimeError, IndexError):
    """A wrong number of dimensions: torch raises the one or the other, depending on the function."""


class NotATensor(TypeError, AttributeError):
    """Something else where a tensor belongs: torch raises the one or the other, depending on the function."""


Size = int | Sequence[int]
AdaptiveSize = int | Sequence[int | None] | None


def batched(name: str, rank: int, input: Tensor, run: Callable[..., Any], *others: Tensor) -> Any:
    """`run` on a batched input, and others of its shape; unbatched ones are a batch of one on the way in and out."""
    if input.dim() == rank + 2:
        return run(input, *others)
    if input.dim() != rank + 1:
        raise RankError(
            f"expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, "
            f"but got input of size {list(input.shape)}"
        )
    result = run(input.unsqueeze(0), *(other.unsqueeze(0) for other in others))
    return tuple(t.squeeze(0) for t in result) if isinstance(result, tuple) else result.squeeze(0)


def as_autocast(name: str, input: Tensor) -> Tensor:
    """The input of a pooling, cast as autocast asks."""
    if name in _FLOAT32_UNDER_AUTOCAST and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    return input


def check_tensor(name: str, argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise NotATensor(f"{name}(): argument '{argument}' must be Tensor, not {type(value).__name__}")


def check_dtype(name: str, dtype: torch.dtype, *supported: torch.dtype) -> None:
    if dtype not in supported:
        raise NotImplementedError(
            f"{name}(): not implemented for an input of dtype {dtype}; "
            f"expected {', '.join(str(dtype).removeprefix('torch.') for dtype in supported)}"
        )


def check_bool(name: str, argument: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}(): argument '{argument}' must be bool, not {type(value).__name__}")
