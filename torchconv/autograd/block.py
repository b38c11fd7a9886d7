"""The fused block y = max_pool(relu(x ∗ w + b)), and its gradients through the winners alone.

Once the winners are known the block is linear in x and in w: a convolution, of which the winners are gathered.  So its
gradients are those of the convolution, of the pooled gradient scattered to the winners:

    x̄ = conv_input_grad(scatter(g), w),  w̄ = conv_weight_grad(x, scatter(g)),  b̄ = Σ g over the living windows

`block_input_grad` and `block_weight_grad` read g through the winners, so scatter(g) never exists in memory.  Their own
derivatives (the second ones of the block) are composed from the products and maps of the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.conv import conv, conv_input_grad, conv_weight_grad
from torchconv.autograd.function import (
    Masked,
    Sum,
    derivatives_of,
    differentiable,
    save_for_forward,
    without_derivative,
)
from torchconv.autograd.pool import max_pool, max_pool_gather, max_pool_scatter
from torchconv.autograd.product import sum_to_channels
from torchconv.geometry import BlockGeometry
from torchconv.layout import arranged, memory_format


class _Composed(Function):
    """What can also be computed by the functions that the block fuses: `unfused`."""

    unfused: Callable[..., Any]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """A batch of blocks is left to the functions that the block fuses, and to their rules."""
        batched = [position for position, dim in enumerate(in_dims) if dim is not None]

        def compute(*tensors: Tensor) -> Any:
            arguments = list(args)
            for position, tensor in zip(batched, tensors):
                arguments[position] = tensor
            return cls.unfused(*arguments)

        dims = tuple(in_dims[position] for position in batched)
        results = torch.func.vmap(compute, in_dims=dims)(*(args[position] for position in batched))
        return results, (0,) * len(results) if isinstance(results, tuple) else 0


@derivatives_of(ops.block_fprop)
class Block(_Composed):
    """(y, winner) [N, O, *pooled] of x [N, C, *input], w [O, C/groups, *kernel] and bias [O] or None."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
        return ops.block_fprop(x, w, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, geometry = inputs
        ctx.geometry, ctx.format = geometry, memory_format(x, w)
        without_derivative(ctx, output[1])
        need_x, need_w = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_w else None, w if need_x else None, output[1])
        save_for_forward(ctx, x, w, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
        if g is None:
            return None, None, None, None
        x, w, winner = ctx.saved_tensors
        g = arranged(g, ctx.format)
        need_x, need_w, need_bias, _ = ctx.needs_input_grad
        gx = block_input_grad(g, winner, w, ctx.geometry) if need_x else None
        gw = gb = None
        if need_w:
            gw, gb = block_weight_grad(x, g, winner, need_bias, ctx.geometry)
        elif need_bias:
            gb = sum_to_channels(g * (winner != ops.DEAD))
        return gx, gw, gb if need_bias else None, None

    @staticmethod
    def unfused(x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
        """What the block computes, from the functions that it fuses."""
        y, winner = max_pool(conv(x, w, bias, geometry.of_conv_alone()), geometry.of_pool_alone())
        return torch.relu(y), torch.where(y <= 0, ops.DEAD, winner)

    @staticmethod
    def jvp(ctx: Any, t_x: Tensor | None, t_w: Tensor | None, t_bias: Tensor | None, _: None) -> Any:
        x, w, winner = ctx.saved_tensors
        tangent = conv(torch.zeros_like(x) if t_x is None else t_x, w, t_bias, ctx.geometry.of_conv_alone())
        if t_w is not None:
            tangent = Sum.apply(tangent, conv(x, t_w, None, ctx.geometry.of_conv_alone()))
        return _gather(tangent, winner, ctx.geometry), None


@derivatives_of(ops.block_dgrad)
class BlockInputGrad(_Composed):
    """x̄ [N, C, *input] of the pooled gradient g [N, O, *pooled]."""

    @staticmethod
    def forward(g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry) -> Tensor:
        return ops.block_dgrad(g, winner, w, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, winner, w, ctx.geometry = inputs
        need_g, _, need_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(g if need_w else None, winner, w if need_g else None)
        save_for_forward(ctx, g, winner, w)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        g, winner, w = ctx.saved_tensors
        gg = gw = None
        if ctx.needs_input_grad[0]:
            gg = _gather(conv(h, w, None, ctx.geometry.of_conv_alone()), winner, ctx.geometry)
        if ctx.needs_input_grad[2]:
            gw = conv_weight_grad(h, _scatter(g, winner, ctx.geometry), False, ctx.geometry.of_conv_alone())[0]
        return gg, None, gw, None

    @staticmethod
    def unfused(g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry) -> Tensor:
        return conv_input_grad(_scatter(g, winner, geometry), w, None, geometry.of_conv_alone())

    @staticmethod
    def jvp(ctx: Any, t_g: Tensor | None, t_winner: None, t_w: Tensor | None, _: None) -> Any:
        g, winner, w = ctx.saved_tensors
        tangent = block_input_grad(torch.zeros_like(g) if t_g is None else t_g, winner, w, ctx.geometry)
        return tangent if t_w is None else Sum.apply(tangent, block_input_grad(g, winner, t_w, ctx.geometry))


@derivatives_of(ops.block_wgrad)
class BlockWeightGrad(_Composed):
    """w̄ [O, C/groups, *kernel], and with `with_bias` b̄ [O], of the pooled gradient g [N, O, *pooled]."""

    @staticmethod
    def forward(
        x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry
    ) -> tuple[Tensor, Tensor]:
        return ops.block_wgrad(x, g, winner, with_bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, g, winner, ctx.with_bias, ctx.geometry = inputs
        need_x, need_g = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_g else None, g if need_x else None, winner)
        save_for_forward(ctx, x, g, winner)

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_bias: Tensor) -> tuple[Any, ...]:
        x, g, winner = ctx.saved_tensors
        gx = gg = None
        if ctx.needs_input_grad[0]:
            gx = conv_input_grad(_scatter(g, winner, ctx.geometry), v, None, ctx.geometry.of_conv_alone())
        if ctx.needs_input_grad[1]:
            z = conv(x, v, v_bias if ctx.with_bias else None, ctx.geometry.of_conv_alone())
            gg = _gather(z, winner, ctx.geometry)
        return gx, gg, None, None, None

    @staticmethod
    def unfused(
        x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry
    ) -> tuple[Tensor, Tensor]:
        return conv_weight_grad(x, _scatter(g, winner, geometry), with_bias, geometry.of_conv_alone())

    @staticmethod
    def jvp(ctx: Any, t_x: Tensor | None, t_g: Tensor | None, t_winner: None, *_: None) -> Any:
        x, g, winner = ctx.saved_tensors
        t_g = torch.zeros_like(g) if t_g is None else t_g
        w, bias = block_weight_grad(x, t_g, winner, ctx.with_bias, ctx.geometry)
        by_x = None if t_x is None else block_weight_grad(t_x, g, winner, False, ctx.geometry)[0]
        return (w if by_x is None else Sum.apply(w, by_x)), bias


def _gather(z: Tensor, winner: Tensor, geometry: BlockGeometry) -> Tensor:
    """The winners' elements of a convolution's output, 0 for a dead window."""
    alive = winner != ops.DEAD
    y = max_pool_gather(z, winner * alive, geometry.of_pool_alone())
    return Masked.apply(y, alive)


def _scatter(g: Tensor, winner: Tensor, geometry: BlockGeometry) -> Tensor:
    """The adjoint of `_gather`."""
    alive = winner != ops.DEAD
    return max_pool_scatter(g * alive, winner * alive, geometry.of_pool_alone())


conv_relu_max_pool = differentiable(Block)
block_input_grad = differentiable(BlockInputGrad)
block_weight_grad = differentiable(BlockWeightGrad)
