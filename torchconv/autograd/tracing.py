"""How a Function is called: which form of it, by who is looking on."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


class Direct:
    """A base, to stand before `Function`, of Functions that have a `setup_context`: a shorter way to call them.

    Of such a Function torch looks up the signature at every call, to fill in defaults, which took longer than all else
    of a call on a small input.  Only `torch.func` has to have the two halves of the forward pass apart.  And where no
    derivative is wanted, as in most backward passes, the forward pass is all there is to do.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        function: Any = cls
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[misc]
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return function.forward(*args)
        return _joined(function).apply(*args)


@functools.cache
def _joined(cls: Any) -> Any:
    """A Function with a forward pass in one: `forward` and then `setup_context`."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = cls.forward(*args)
        cls.setup_context(ctx, args, output)
        return output

    body = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(Function.setup_context),
        "apply": Function.__dict__["apply"],
    }
    return type(cls.__name__, (cls,), body)


def traced() -> bool:
    """Whether Dynamo is tracing, and no transform of `torch.func` inside what it traces.

    Dynamo refuses a Function that defines `jvp`.  Inside a transform it is to refuse, and leave the transform to run as
    it is: of a plain Function, torch would differentiate the forward pass, whose operators have no derivative.
    """
    return torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None


def measured(geometry: Any, **tensors: Tensor) -> Any:
    """The geometry; while Dynamo traces, with these of its fields read anew, as the spatial sizes of these tensors.

    It traces a Function's forward and backward pass as two graphs, and a dynamic size in the second must come from a
    tensor of the first: torch 2.14 loses one computed outside of both between them ("does not belong to this Graph").
    """
    return replace(geometry, **{field: tuple(t.shape[2:]) for field, t in tensors.items()}) if traced() else geometry
