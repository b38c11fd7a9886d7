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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchconv import ops
from torchconv.autograd.tracing import Direct, Sum, derivatives_of, run
from torchconv.geometry import ConvGeometry
from torchconv.layout import arranged, memory_format


class _Product(Direct):
    """Forward mode and batching (`torch.func.vmap`) of the three products.

    `letters` names the roles of the first factor, the second, and the result.
    """

    letters: str

    @classmethod
    def jvp(cls, ctx: Any, t_first: Tensor | None, t_second: Tensor | None, t_third: Tensor | None, _: None) -> Any:
        """The product rule: (a · b)' = a' · b + a · b'.  `t_third` is the bias's tangent, itself a bias."""
        first, second = ctx.saved_tensors
        product, geometry = _PRODUCTS[cls.letters], ctx.geometry
        if cls.letters == "xyw":
            by_second = product(
                first, torch.zeros_like(second) if t_second is None else t_second, ctx.with_bias, geometry
            )
            if t_first is None:
                return by_second
            return Sum.apply(by_second[0], product(t_first, second, False, geometry)[0]), by_second[1]
        by_first = product(torch.zeros_like(first) if t_first is None else t_first, second, t_third, geometry)
        return by_first if t_second is None else Sum.apply(by_first, product(first, t_second, None, geometry))

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[Any, ...], first: Tensor, second: Tensor, third: Any, geometry: ConvGeometry
    ) -> Any:
        """A batch of products is one product with the batch folded into the dimension that its operands share.

        Two of the three tensors of a product share each of its dimensions: x and y the samples, x and w the input
        channels, w and y the output channels; all three share the groups.  If one factor is batched, so is the result,
        and the batch goes into the dimension that those two share; if both are, it becomes groups.
        """
        if info.batch_size == 0:
            return cls._of_none(info, in_dims, (first, second, third, geometry))
        a, b, result = tuple(cls.letters)
        product, groups, size = _PRODUCTS[cls.letters], geometry.groups, info.batch_size
        first_dim, second_dim, third_dim, _ = in_dims
        if first_dim is not None and second_dim is not None:
            axes, geometry = _GROUP_AXES, geometry.with_groups(size * groups)
        else:
            axes = _SHARED_AXES["".join(sorted(result + (a if first_dim is not None else b)))]
        split = {role: (dim, groups if per_group else 1) for role, (dim, per_group) in axes.items()}

        folded = [
            t if dim is None else _fold(t.movedim(dim, 0), *split[role])
            for role, t, dim in ((a, first, first_dim), (b, second, second_dim))
        ]
        batched = first_dim is not None or second_dim is not None

        def unfold(t: Tensor) -> Tensor:
            return _unfold(t, *split[result], size) if batched else t.expand(size, *t.shape)

        if cls.letters == "xyw":
            w = unfold(product(*folded, False, geometry)[0])
            if not third:
                return (w, second.new_empty(0)), (0, None)
            if second_dim is None:
                return (w, sum_to_channels(second)), (0, None)
            g = second.movedim(second_dim, 0)
            return (w, g.sum((1, *range(3, g.dim())))), (0, 0)
        y = unfold(product(*folded, None, geometry))
        if third is not None:
            bias = third[None] if third_dim is None else third.movedim(third_dim, 0)  # [B or 1, C]
            y = y + bias.view(bias.shape[0], 1, -1, *(1,) * geometry.rank)
        return y, 0

    @classmethod
    def _of_none(cls, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """A batch of no products, which cannot be folded into a size: one of zeros, cut off again."""
        ones: Any = [
            t if dim is None else torch.nn.functional.pad(t.movedim(dim, 0), (0, 0) * (t.dim() - 1) + (0, 1))
            for t, dim in zip(args, in_dims)
        ]
        result, dims = cls.vmap(info._replace(batch_size=1), tuple(None if d is None else 0 for d in in_dims), *ones)
        if isinstance(result, tuple):
            return tuple(t if dim is None else t[:0] for t, dim in zip(result, dims)), dims
        return result[:0], dims


@derivatives_of(ops.conv_fprop)
class Conv(_Product):
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
class ConvInputGrad(_Product):
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
class ConvWeightGrad(_Product):
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
    ctx.save_for_forward(first, second)


def sum_to_channels(t: Tensor) -> Tensor:
    """The bias's gradient: the sum over batch and space of [N, C, *]."""
    return t.sum((0, *range(2, t.dim())))


# Where a batch goes: the dimension of each tensor that takes it, and whether that dimension is made of groups, inside
# each of which the batch must lie.  x is [N, G·C, *], y is [N, G·O, *], w is [G·O, C, *].
_SHARED_AXES = {
    "xy": {"x": (0, False), "y": (0, False)},
    "wx": {"x": (1, True), "w": (1, False)},
    "wy": {"w": (0, True), "y": (1, True)},
}
_GROUP_AXES = {"x": (1, False), "w": (0, False), "y": (1, False)}


def _fold(t: Tensor, dim: int, groups: int) -> Tensor:
    """[B, …, groups·n, …] to [B-less …, groups·B·n, …]: the batch goes into dimension `dim` of the result."""
    t = t.unflatten(dim + 1, (groups, t.shape[dim + 1] // groups))
    return t.movedim(0, dim + 1).flatten(dim, dim + 2)


def _unfold(t: Tensor, dim: int, groups: int, batch: int) -> Tensor:
    """The inverse of `_fold`."""
    t = t.unflatten(dim, (groups, batch, t.shape[dim] // (groups * batch)))
    return t.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)


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


def conv(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Differentiable convolution; see `Conv`."""
    return run(Conv, x, w, bias, geometry)


def conv_input_grad(g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Differentiable gradient of a convolution's input, or transposed convolution; see `ConvInputGrad`."""
    if geometry.padding_mode != "zeros":
        return _unpadded(conv_input_grad(g, w, bias, geometry.of_padded()), geometry)
    return run(ConvInputGrad, g, w, bias, geometry)


def conv_weight_grad(x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry) -> tuple[Tensor, Tensor]:
    """Differentiable gradients of a convolution's weight and bias; see `ConvWeightGrad`."""
    return run(ConvWeightGrad, x, g, with_bias, geometry)


_PRODUCTS: dict[str, Callable[..., Any]] = {"xwy": conv, "ywx": conv_input_grad, "xyw": conv_weight_grad}
