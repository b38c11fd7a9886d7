"""Models that call functions: torch's convolutions and poolings are answered by this package's.

For modules there is `torchconv.convert`, which outlives a `with` block and costs no more per call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchconv import functional


class override(TorchFunctionMode):
    """Run torch's convolutions and poolings on this package's functions inside the `with` block.

    Routed are the functions of `torch.nn.functional` of the names in `torchconv.functional`, hence torch.nn's modules,
    and `torch.conv2d` and its kin.  Not routed are what another thread calls, what runs inside a model that TorchScript
    has compiled, and the operators `torch.ops.aten` themselves.  The backward pass needs no `with` block, but
    for what activation checkpointing computes anew: give `torch.utils.checkpoint.checkpoint` the argument
    `context_fn=lambda: (torchconv.override(), torchconv.override())`.

    Example:
        >>> with torchconv.override():
        ...     y = torch.nn.functional.conv2d(x, w)
        >>> torch.equal(y, torchconv.functional.conv2d(x, w))
        True
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _ROUTES.get(func, func)(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """`torch.convolution`, the one function behind torch's six."""
    rank = weight.dim() - 2
    if transposed:
        function = getattr(functional, f"conv_transpose{rank}d")
        return function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return getattr(functional, f"conv{rank}d")(input, weight, bias, stride, padding, dilation, groups)


def _conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """`torch.conv_tbc`: 1-D convolution of [T, N, C] with [k, C, O], for [T', N, O]."""
    y = functional.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad)
    return y.permute(2, 0, 1)


def _routes() -> dict[Any, Callable[..., Any]]:
    routes: dict[Any, Callable[..., Any]] = {torch.convolution: _convolution, torch.conv_tbc: _conv_tbc}
    for name in functional.__all__:
        for namespace in (torch, torch.nn.functional):
            if hasattr(namespace, name):
                routes[getattr(namespace, name)] = getattr(functional, name)
    # torch's own, unlike that of torch.nn.functional, always returns the indices too.
    routes[torch.adaptive_max_pool1d] = functional.adaptive_max_pool1d_with_indices
    return routes


_ROUTES = _routes()
