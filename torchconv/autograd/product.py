"""What the three products of a convolution have in common: forward mode, and batches of them, are products again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv.autograd.function import Sum
from torchconv.geometry import ConvGeometry


class Product(Function):
    """Forward mode and batching (`torch.func.vmap`) of the three products.

    `letters` names the roles of the first factor, the second, and the result.
    """

    letters: str

    @classmethod
    def jvp(cls, ctx: Any, t_first: Tensor | None, t_second: Tensor | None, t_third: Tensor | None, _: None) -> Any:
        """The product rule: (a · b)' = a' · b + a · b'.  `t_third` is the bias's tangent, itself a bias."""
        first, second = ctx.saved_tensors
        product, geometry = cls.apply, ctx.geometry
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
        product, groups, size = cls.apply, geometry.groups, info.batch_size
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


def sum_to_channels(t: Tensor) -> Tensor:
    """The bias's gradient: the sum over batch and space of [N, C, *]."""
    return t.sum((0, *range(2, t.dim())))
