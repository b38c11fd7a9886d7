"""What the maps of pooling have in common: they are linear, or once the winners are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from torchconv.autograd.function import batch_first


class LinearMap(Function):
    """Forward mode and batching of linear maps.

    `tangent` is the linear map that is the derivative: the Function itself, or for those that find winners the gather
    of these, which such a Function keeps.
    """

    tangent: Callable[..., Tensor] | None = None

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor, *_: None) -> Any:
        if cls.tangent is not None:
            return cls.tangent(tangent, *ctx.saved_tensors, ctx.geometry), None
        return cls.apply(tangent, *ctx.saved_tensors, ctx.geometry)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Pooling treats every sample alike: the batch is more samples."""
        batched = batch_first(info, in_dims[:-1], args[:-1])
        output, both = cls.apply(*(t.flatten(0, 1) for t in batched), args[-1]), batched[0].shape[:2]
        if isinstance(output, tuple):
            return tuple(t.unflatten(0, both) for t in output), (0,) * len(output)
        return output.unflatten(0, both), 0
