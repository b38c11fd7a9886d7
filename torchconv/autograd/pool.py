"""Pooling is linear, or linear once the winners are known: each map's derivative is itself, its gradient the adjoint.

| map                | formula                                          | adjoint            |
|--------------------|--------------------------------------------------|--------------------|
| `avg_pool`         | y[o] = Σ_k x[o·s − p + k·d] / divisor[o]          | `avg_pool_grad`    |
| `avg_pool_grad`    | x̄[i] = Σ g[o] / divisor[o], windows o that hold i | `avg_pool`         |
| `max_pool_gather`  | y[o] = x[winner(o)]                              | `max_pool_scatter` |
| `max_pool_scatter` | x̄[i] = Σ g[o], windows o whose winner is i       | `max_pool_gather`  |

`max_pool` finds the winners (`offset`, the winning tap's position in its window) and gathers them: only the winning
unit receives the gradient (LeCun et al. 1998; Scherer, Müller & Behnke 2010).  Average pooling's gradient is upsampled
and divided by the window's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.geometry import AvgGeometry, PoolGeometry


class MaxPool(Function):
    """(y, offset): the greatest element of every window [N, C, *output], and the position of its tap in the window."""

    @staticmethod
    def forward(x: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
        return ops.max_pool(x, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.geometry, ctx.format = inputs[1], ops.memory_format(inputs[0])
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: None) -> tuple[Any, ...]:
        return max_pool_scatter(ops.arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None


class MaxPoolGather(Function):
    """y[o] = x[winner(o)], for winners that are known already."""

    @staticmethod
    def forward(x: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
        return ops.max_pool_gather(x, offset, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_offset(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return max_pool_scatter(ops.arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


class MaxPoolScatter(Function):
    """x̄[i] = Σ g[o] over the windows whose winner is i: each window's gradient goes to its winner alone."""

    @staticmethod
    def forward(g: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
        return ops.max_pool_scatter(g, offset, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_offset(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        return max_pool_gather(ops.arranged(h, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


class AvgPool(Function):
    """y[o] = the mean of window o: [N, C, *input] to [N, C, *output]."""

    @staticmethod
    def forward(x: Tensor, geometry: AvgGeometry) -> Tensor:
        return ops.avg_pool(x, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.geometry, ctx.format = inputs[1], ops.memory_format(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return avg_pool_grad(ops.arranged(g, ctx.format), ctx.geometry), None


class AvgPoolGrad(Function):
    """x̄ = g upsampled to the input and divided by the windows' sizes: the adjoint of `AvgPool`."""

    @staticmethod
    def forward(g: Tensor, geometry: AvgGeometry) -> Tensor:
        return ops.avg_pool_grad(g, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.geometry, ctx.format = inputs[1], ops.memory_format(inputs[0])

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        return avg_pool(ops.arranged(h, ctx.format), ctx.geometry), None


def _save_offset(ctx: Any, inputs: tuple[Any, ...]) -> None:
    t, offset, ctx.geometry = inputs
    ctx.format = ops.memory_format(t)
    ctx.save_for_backward(offset)
    ctx.save_for_forward(offset)


class _Transforms:
    """Forward mode and batching of the maps above; apart from them because Dynamo does not trace a custom `jvp`."""

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor, *_: None) -> Any:
        """A linear map is its own derivative; that of `max_pool` is the gather of its winners."""
        if issubclass(cls, MaxPool):
            return max_pool_gather(tangent, ctx.saved_tensors[0], ctx.geometry), None
        return cls.apply(tangent, *ctx.saved_tensors, ctx.geometry)  # type: ignore[attr-defined]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Pooling treats every sample alike: the batch is more samples."""
        size = info.batch_size
        folded = [
            (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
            for t, dim in zip(args[:-1], in_dims[:-1])
        ]
        output = cls.apply(*folded, args[-1])  # type: ignore[attr-defined]
        if isinstance(output, tuple):
            return tuple(t.unflatten(0, (size, t.shape[0] // size)) for t in output), (0,) * len(output)
        return output.unflatten(0, (size, output.shape[0] // size)), 0


class _MaxPool(_Transforms, MaxPool):
    pass


class _MaxPoolGather(_Transforms, MaxPoolGather):
    pass


class _MaxPoolScatter(_Transforms, MaxPoolScatter):
    pass


class _AvgPool(_Transforms, AvgPool):
    pass


class _AvgPoolGrad(_Transforms, AvgPoolGrad):
    pass


def max_pool(x: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
    """Differentiable max pooling; see `MaxPool`."""
    return (MaxPool if torch.compiler.is_compiling() else _MaxPool).apply(x, geometry)


def winner_index(offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """The winners as torch reports them: int64 positions in the flattened input, [N, C, *output] as `offset`."""
    tap, digits = offset.long(), []
    for size in reversed(geometry.kernel):
        digits.append(tap % size)
        tap = tap // size
    index = tap  # all zeros by now
    for dim, digit in enumerate(reversed(digits)):
        start = torch.arange(geometry.output[dim], device=offset.device) * geometry.stride[dim] - geometry.padding[dim]
        start = start.view(-1, *(1,) * (geometry.rank - 1 - dim))
        index = index * geometry.input[dim] + start + digit * geometry.dilation[dim]
    return index


def max_pool_gather(x: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """Differentiable gather of known winners; see `MaxPoolGather`."""
    return (MaxPoolGather if torch.compiler.is_compiling() else _MaxPoolGather).apply(x, offset, geometry)


def max_pool_scatter(g: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
    """Differentiable scatter to known winners; see `MaxPoolScatter`."""
    return (MaxPoolScatter if torch.compiler.is_compiling() else _MaxPoolScatter).apply(g, offset, geometry)


def avg_pool(x: Tensor, geometry: AvgGeometry) -> Tensor:
    """Differentiable average pooling; see `AvgPool`."""
    return (AvgPool if torch.compiler.is_compiling() else _AvgPool).apply(x, geometry)


def avg_pool_grad(g: Tensor, geometry: AvgGeometry) -> Tensor:
    """Differentiable adjoint of average pooling; see `AvgPoolGrad`."""
    return (AvgPoolGrad if torch.compiler.is_compiling() else _AvgPoolGrad).apply(g, geometry)
