"""What the functions of this package share before any work: types of arguments, and the batch dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS_AND_INT64 = (*FLOATS, torch.int64)
FLOATS_AND_INTEGERS = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS_AND_COMPLEX = (*FLOATS, torch.complex64, torch.complex128)

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


def batched(name: str, rank: int, input: Tensor) -> Tensor:
    """The input itself if it is batched, else as a batch of one: whose result is to be squeezed again."""
    if isinstance(input, Tensor) and input.dim() == rank + 2:
        return input
    check_tensor(name, "input", input)
    if input.dim() != rank + 1:
        raise RankError(
            f"expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, "
            f"but got input of size {list(input.shape)}"
        )
    return input.unsqueeze(0)


def as_autocast(name: str, input: Tensor) -> Tensor:
    """The input of a pooling, cast as autocast asks."""
    if name in _FLOAT32_UNDER_AUTOCAST and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    return input


def check_tensor(name: str, argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise NotATensor(f"{name}(): argument '{argument}' must be Tensor, not {type(value).__name__}")


def check_input(name: str, input: Tensor, supported: tuple[torch.dtype, ...]) -> None:
    check_tensor(name, "input", input)
    check_dtype(name, input.dtype, supported)


def check_dtype(name: str, dtype: torch.dtype, supported: tuple[torch.dtype, ...]) -> None:
    if dtype not in supported:
        raise NotImplementedError(
            f"{name}(): not implemented for an input of dtype {dtype}; "
            f"expected {', '.join(str(dtype).removeprefix('torch.') for dtype in supported)}"
        )


def check_channels(name: str, size: Sequence[int]) -> None:
    """Of [N, C, *], torch allows N to be 0, but not C."""
    if size[1] == 0:
        raise RuntimeError(f"{name}(): expected input to have channels, but got input of size {list(size)}")


def check_bool(name: str, argument: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}(): argument '{argument}' must be bool, not {type(value).__name__}")
