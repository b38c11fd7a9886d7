"""Convolution is bilinear, so its derivatives are three products that are closed under differentiation.

With input x, weight w and output y of a convolution y = x ∗ w (Dumoulin & Visin 2016, chapters 2 and 4; the names
fprop, dgrad and wgrad are those of Chetlur et al. 2014, "cuDNN: Efficient primitives for deep learning"):

| product                    | formula                                | ∂ first argument      | ∂ second argument      |
|----------------------------|----------------------------------------|-----------------------|------------------------|
| `conv` (fprop)             | y[o] = Σ_k x[o·s − p + k·d] · w[k]     | conv_input_grad(·, w) | conv_weight_grad(x, ·) |
| `conv_input_grad` (dgrad)  | x̄[i] = Σ_{o·s−p+k·d=i} g[o] · w[k]     | conv(·, w)            | conv_weight_grad(·, g) |
| `conv_weight_grad` (wgrad) | w̄[k] = Σ_o x[o·s − p + k·d] · g[o]     | conv_input_grad(g, ·) | conv(x, ·)             |

(sums over batch and channels left out).  Whichever of x, w and y is missing is what the product returns, so every
backward pass below is two calls of the other two products, and derivatives of every order exist.  `conv_input_grad` is
also the transposed convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchconv import ops
from torchconv.autograd.function import derivatives_of, differentiable, save_for_forward
from torchconv.autograd.product import Product, sum_to_channels
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged, memory_format


@derivatives_of(ops.conv_fprop)
class Conv(Product):
    """y = x ∗ w + bias, the convolution (fprop).

    Shapes: x [N, C, *input], w [O, C/groups, *kernel], bias [O] or None, y [N, O, *output].
    """

    letters = "xwy"

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        return ops.conv_fprop(x, w, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        g = arranged(g, ctx.format)
        need_x, need_w, need_bias, _ = ctx.needs_input_grad
        # The input's gradient: g, padded with zeros, convolved in full with the flipped kernel.
        gx = conv_input_grad(g, w, None, ctx.geometry) if need_x else None
        gw = gb = None
        if need_w:
            # The kernel's gradient: the input correlated with g; the bias's, g summed, rides along in the same pass.
            gw, gb = conv_weight_grad(x, g, need_bias, ctx.geometry)
        elif need_bias:
            gb = sum_to_channels(g)
        return gx, gw, gb if need_bias else None, None


@derivatives_of(ops.conv_dgrad)
class ConvInputGrad(Product):
    """x̄ = g ⊛ flip(w) + bias, the gradient of a convolution's input (dgrad), and the transposed convolution.

    Shapes: g [N, O, *output], w [O, C/groups, *kernel], bias [C] or None, x̄ [N, C, *input].
    """

    letters = "ywx"

    @staticmethod
    def forward(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        return ops.conv_dgrad(g, w, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        g, w = ctx.saved_tensors
        h = arranged(h, ctx.format)
        need_g, need_w, need_bias, _ = ctx.needs_input_grad
        gg = conv(h, w, None, ctx.geometry) if need_g else None
        gw = conv_weight_grad(h, g, False, ctx.geometry)[0] if need_w else None
        return gg, gw, sum_to_channels(h) if need_bias else None, None


@derivatives_of(ops.conv_wgrad)
class ConvWeightGrad(Product):
    """w̄ = the correlation of x with g (wgrad), and with `with_bias` also b̄ = Σ g over batch and space.

    Shapes: x [N, C, *input], g [N, O, *output], w̄ [O, C/groups, *kernel], b̄ [O] (or [0], not asked for).
    """

    letters = "xyw"

    @staticmethod
    def forward(x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry) -> tuple[Tensor, Tensor]:
        return ops.conv_wgrad(x, g, with_bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)
        ctx.with_bias = inputs[2]

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_bias: Tensor) -> tuple[Any, ...]:
        x, g = ctx.saved_tensors
        v = arranged(v, ctx.format)
        gx = conv_input_grad(g, v, None, ctx.geometry) if ctx.needs_input_grad[0] else None
        gg = conv(x, v, v_bias if ctx.with_bias else None, ctx.geometry) if ctx.needs_input_grad[1] else None
        return gx, gg, None, None


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    """Keep the two factors, each only if the other one's derivative will ask for it, and the result's memory format.

    A gradient may arrive in any layout; it is brought to that format, so that what it leads to has it, as torch's has.
    """
    first, second, _, ctx.geometry = inputs
    ctx.format = memory_format(first, second)
    need_first, need_second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(first if need_second else None, second if need_first else None)
    save_for_forward(ctx, first, second)


def _unpadded(t: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint of padding by index: each element of the padding is added to the one that it repeats."""
    for dim, (size, lower, padded) in enumerate(zip(geometry.input, geometry.padding, geometry.padded), start=2):
        upper = padded - lower - size
        before, middle, after = t.split((lower, size, upper), dim)
        if geometry.padding_mode == "reflect":
            images = ((before.flip(dim), 1), (after.flip(dim), size - 1 - upper))
        elif geometry.padding_mode == "replicate":
            images = ((before.sum(dim, keepdim=True), 0), (after.sum(dim, keepdim=True), size - 1))
        else:
            images = ((before, size - lower), (after, 0))
        t = middle
        for image, start in images:
            around = (start, size - start - image.shape[dim])
            t = t + torch.nn.functional.pad(image, (0, 0) * (t.dim() - 1 - dim) + around)
    return t


conv = differentiable(Conv)
conv_weight_grad = differentiable(ConvWeightGrad)
_input_grad = differentiable(ConvInputGrad)


def conv_input_grad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Differentiable gradient of a convolution's input, or transposed convolution; see `ConvInputGrad`."""
    if geometry.padding_mode != "zeros":
        return _unpadded(conv_input_grad(g, w, bias, geometry.of_padded()), geometry)
    return _input_grad(g, w, bias, geometry)
