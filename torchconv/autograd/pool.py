"""Pooling is linear, or linear once the winners are known: each map's derivative is itself, its gradient the adjoint.

| map                | formula                                          | adjoint            |
|--------------------|--------------------------------------------------|--------------------|
| `avg_pool`         | y[o] = Σ_k x[o·s − p + k·d] / divisor[o]          | `avg_pool_grad`    |
| `avg_pool_grad`    | x̄[i] = Σ g[o] / divisor[o], windows o that hold i | `avg_pool`         |
| `max_pool_gather`  | y[o] = x[winner(o)]                              | `max_pool_scatter` |
| `max_pool_scatter` | x̄[i] = Σ g[o], windows o whose winner is i       | `max_pool_gather`  |

`max_pool` finds the winners (`offset`, the winning tap's position in its window) and gathers them: only the winning
unit receives the gradient (Scherer, Müller & Behnke 2010).  Average pooling's gradient is upsampled
and divided by the window's size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchconv import ops
from torchconv.autograd.function import derivatives_of, differentiable, save_for_forward, without_derivative
from torchconv.autograd.linear import LinearMap
from torchconv.geometry import AvgGeometry, PoolGeometry
from torchconv.layout import arranged, format_of, memory_format


@derivatives_of(ops.max_pool)
class MaxPool(LinearMap):
    """(y, offset): the greatest element of every window [N, C, *output], and the position of its tap in the window."""

    @staticmethod
    def forward(x: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
        return ops.max_pool(x, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.geometry = inputs[1]
        without_derivative(ctx, output[1])
        ctx.save_for_backward(output[1])
        save_for_forward(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
        if g is None:
            return None, None
        [offset] = ctx.saved_tensors  # in the format of the input
        return max_pool_scatter(arranged(g, memory_format(offset)), offset, ctx.geometry), None


@derivatives_of(ops.max_pool_gather)
class MaxPoolGather(LinearMap):
    """y[o] = x[winner(o)], for winners that are known already."""

    @staticmethod
    def forward(x: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
        return ops.max_pool_gather(x, offset, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_offset(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return max_pool_scatter(arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


@derivatives_of(ops.max_pool_scatter)
class MaxPoolScatter(LinearMap):
    """x̄[i] = Σ g[o] over the windows whose winner is i: each window's gradient goes to its winner alone."""

    @staticmethod
    def forward(g: Tensor, offset: Tensor, geometry: PoolGeometry) -> Tensor:
        return ops.max_pool_scatter(g, offset, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_offset(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        return max_pool_gather(arranged(h, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


@derivatives_of(ops.avg_pool)
class AvgPool(LinearMap):
    """y[o] = the mean of window o: [N, C, *input] to [N, C, *output]."""

    @staticmethod
    def forward(x: Tensor, geometry: AvgGeometry) -> Tensor:
        return ops.avg_pool(x, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.geometry, ctx.stride = inputs[1], inputs[0].stride()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        format = format_of((*g.shape[:2], *ctx.geometry.input), ctx.stride)
        return avg_pool_grad(arranged(g, format), ctx.geometry), None


@derivatives_of(ops.avg_pool_grad)
class AvgPoolGrad(LinearMap):
    """x̄ = g upsampled to the input and divided by the windows' sizes: the adjoint of `AvgPool`."""

    @staticmethod
    def forward(g: Tensor, geometry: AvgGeometry) -> Tensor:
        return ops.avg_pool_grad(g, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.geometry, ctx.format = inputs[1], memory_format(inputs[0])

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        return avg_pool(arranged(h, ctx.format), ctx.geometry), None


def _save_offset(ctx: Any, inputs: tuple[Any, ...]) -> None:
    t, offset, ctx.geometry = inputs
    ctx.format = memory_format(t)
    ctx.save_for_backward(offset)
    save_for_forward(ctx, offset)


max_pool = differentiable(MaxPool)
max_pool_gather = differentiable(MaxPoolGather)
max_pool_scatter = differentiable(MaxPoolScatter)
avg_pool = differentiable(AvgPool)
avg_pool_grad = differentiable(AvgPoolGrad)
MaxPool.tangent = max_pool_gather
