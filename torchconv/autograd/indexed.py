"""Pooling by explicit winners: a gather by index and its adjoint, each the other's gradient.

| map                   | formula                                    | gradient        |
|-----------------------|--------------------------------------------|-----------------|
| `index_gather`        | y[o] = x[index[o]]                         | `index_scatter` |
| `index_scatter`       | x̄[i] = Σ g[o] over index[o] = i            | `index_gather`  |
| `max_unpool`          | y[index[o]] = x[o], elsewhere 0            | `index_gather`  |
| `fractional_max_pool` | y[o] = max of a window at random positions | `index_scatter` |
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchconv import ops
from torchconv.autograd.function import derivatives_of, differentiable, save_for_forward, without_derivative
from torchconv.autograd.linear import LinearMap
from torchconv.geometry import FractionalGeometry, IndexGeometry
from torchconv.layout import arranged, memory_format


@derivatives_of(ops.index_gather)
class IndexGather(LinearMap):
    """y [N, C, *output] from x [N, C, *input] by index [N, C, *output]."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, geometry: IndexGeometry) -> Tensor:
        return ops.index_gather(x, index, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return index_scatter(arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


@derivatives_of(ops.index_scatter)
class IndexScatter(LinearMap):
    """x̄ [N, C, *input] from g [N, C, *output] by index [N, C, *output]."""

    @staticmethod
    def forward(g: Tensor, index: Tensor, geometry: IndexGeometry) -> Tensor:
        return ops.index_scatter(g, index, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        return index_gather(arranged(h, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


@derivatives_of(ops.max_unpool)
class MaxUnpool(LinearMap):
    """y [N, C, *input] from x [N, C, *output] by index [N, C, *output].

    Where two windows name one position the last is kept; as torch's, the gradient flows to both.
    """

    @staticmethod
    def forward(x: Tensor, index: Tensor, geometry: IndexGeometry) -> Tensor:
        return ops.max_unpool(x, index, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return index_gather(arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


@derivatives_of(ops.fractional_max_pool)
class FractionalMaxPool(LinearMap):
    """(y, index) [N, C, *output] of x [N, C, *input]; `starts` [N, C, Σ output] are the windows' first positions."""

    @staticmethod
    def forward(x: Tensor, starts: Tensor, geometry: FractionalGeometry) -> tuple[Tensor, Tensor]:
        return ops.fractional_max_pool(x, starts, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save(ctx, (inputs[0], output[1], IndexGeometry(inputs[2].input)))
        without_derivative(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
        if g is None:
            return None, None, None
        return index_scatter(arranged(g, ctx.format), ctx.saved_tensors[0], ctx.geometry), None, None


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    t, index, ctx.geometry = inputs
    ctx.format = memory_format(t)
    ctx.save_for_backward(index)
    save_for_forward(ctx, index)


index_gather = differentiable(IndexGather)
index_scatter = differentiable(IndexScatter)
max_unpool = differentiable(MaxUnpool)
fractional_max_pool = differentiable(FractionalMaxPool)
FractionalMaxPool.tangent = index_gather
