"""Which form of a Function runs: the plain one while Dynamo traces, else the one with transforms."""

from __future__ import annotations

import torch


def traced() -> bool:
    """Whether Dynamo is tracing, and no transform of `torch.func` inside what it traces.

    Dynamo refuses a Function that defines `jvp`.  Inside a transform it is to refuse, and leave the transform to run as
    it is: of a plain Function, torch would differentiate the forward pass, whose operators have no derivative.
    """
    return torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None
