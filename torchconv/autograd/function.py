"""What the Functions of this package have in common: how they are called, and what they are to their operators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

from torchconv import ops


def derivatives_of(operator: Callable[..., Any]) -> Callable[[Any], Any]:
    """Mark a Function as the derivatives of the operator that is its forward pass.

    So they are the operator's in a graph of nothing but operators, too: torch's compiler differentiates that, and an
    exported program is one.
    """

    def register(function: Any) -> Any:
        function.operator = staticmethod(operator)  # which `forward` calls by names that torch and Dynamo count
        ops.differentiate(operator, function)
        return function

    return register


def differentiable(function: Any) -> Callable[..., Any]:
    """A Function as a function of the same arguments: its result, by the shortest way.

    Of a Function that has a `setup_context`, torch's `apply` looks up the signature at every call, to fill in defaults,
    which takes longer than all else of a call on a small input.  Only `torch.func` has to have the two halves of the
    forward pass apart.  Where no derivative is wanted, as in most backward passes, the operator is all there is to
    do.  So it is while Dynamo traces, which refuses a Function that defines `jvp`, and takes the operator's
    derivatives; inside a transform of `torch.func` it is to refuse, and leave the transform to run as it is, for there
    torch would look for the operator's own rules.
    """
    # Looked up once: where other code has run in between, a name takes as long to find as to call.
    operator, apply = function.operator, _joined(function).apply
    transforms, grad_enabled, forward_mode = ops.transforms, ops.grad_enabled, ops.forward_mode

    @functools.wraps(function.forward)
    def call(*args: Any) -> Any:
        if is_dynamo_compiling():
            transformed = torch._C._functorch.maybe_current_level() is not None
            return function.apply(*args) if transformed else operator(*args)
        if transforms():
            return function.apply(*args)
        return apply(*args) if grad_enabled() or forward_mode() else operator(*args)

    call.__name__ = call.__qualname__ = operator.__name__
    call.__doc__ = function.__doc__
    signature = inspect.signature(function.forward)
    parameters = [parameter.replace(kind=parameter.POSITIONAL_ONLY) for parameter in signature.parameters.values()]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def _joined(function: Any) -> Any:
    """A Function with a forward pass in one: the operator and then `setup_context`."""
    operator, keep = function.operator, function.setup_context

    def forward(ctx: Any, *args: Any) -> Any:
        output = operator(*args)
        keep(ctx, args, output)
        return output

    body = {"forward": staticmethod(forward), "setup_context": staticmethod(Function.setup_context)}
    return type(function.__name__, (function,), body)


def save_for_forward(ctx: Any, *tensors: Tensor | None) -> None:
    """`ctx.save_for_forward`, if forward mode is on: else nobody asks for them, and it takes its time."""
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


def without_derivative(ctx: Any, output: Tensor) -> None:
    """Mark an output that has no derivative, such as indices, and keep torch from making it a gradient of zeros.

    A gradient of the other output that is zero everywhere may then arrive as None.
    """
    ctx.mark_non_differentiable(output)
    ctx.set_materialize_grads(False)


class Sum(Function):
    """a + b inside a `jvp`: of a plain operator there, torch drops the tangents of the levels around it."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, g

    @staticmethod
    def jvp(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return Sum.apply(a, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        return Sum.apply(*batch_first(info, in_dims, args)), 0


class Masked(Function):
    """t · mask, likewise; the mask has no derivative."""

    @staticmethod
    def forward(t: Tensor, mask: Tensor) -> Tensor:
        return t * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        save_for_forward(ctx, inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Masked.apply(g, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, mask: None) -> Tensor:
        return Masked.apply(t, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        return Masked.apply(*batch_first(info, in_dims, args)), 0


def batch_first(info: Any, in_dims: tuple[int | None, ...], args: tuple[Tensor, ...]) -> list[Tensor]:
    """What `vmap` maps over as the first dimension of each, also of those that have no batch."""
    return [t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(args, in_dims)]
