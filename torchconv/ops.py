"""The operators `torchconv::…`: what torch's dispatcher, compiler and profiler see of this package.

An operator is four things: a schema, a shape function for tracing, an implementation in plain tensor algebra
(`torchconv.eager`, for CPU tensors) and one in Triton (`triton_kernels`, for GPU tensors, and for CPU tensors under
`torchconv.backend("triton")`; those that only index have the algebra there too).  The last three take the same
arguments: the tensors, the geometry, and the memory format of the result, which is channels_last if one of the leading
tensors is, else contiguous.

Operators know nothing of derivatives; `torchconv.autograd` does, and tells them (`differentiate`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from torchconv.backend import current_backend, interpreted_kernels, kernels
from torchconv.eager import block as eager_block
from torchconv.eager import conv as eager_conv
from torchconv.eager import indexed as eager_indexed
from torchconv.eager import pool as eager_pool
from torchconv.geometry import (
    AvgGeometry,
    BlockGeometry,
    ConvGeometry,
    FractionalGeometry,
    IndexGeometry,
    PoolGeometry,
    of_numbers,
    to_numbers,
)
from torchconv.layout import memory_format

_LIBRARY = torch.library.Library("torchconv", "DEF")
# Nobody differentiates what an operator does inside.  And what is a view there is none outside: its result may be
# changed in place, as `ReLU(inplace=True)` does.
_BelowAutograd = torch._C._AutoDispatchBelowADInplaceOrView
_idle: list[Any] = []  # blocks of it that nobody is in: to make one takes longer than to enter and leave it


def _operator(
    signature: str,
    geometry: type,
    shapes: Callable[..., Any],
    eager: Callable[..., Any],
    by: int,
    algebra: bool = False,
) -> Callable[..., Any]:
    """Define `torchconv::name`, and return a function that calls it.

    Args:
        signature: the schema without the geometry, e.g. "name(Tensor x) -> Tensor".
        geometry: the dataclass that follows the tensors, in the schema a list of integers (`to_numbers`): that crosses
            the dispatcher in half the time of a list for each of its fields.
        shapes: what the operator returns, for tensors without data.
        eager: the implementation for CPU; `triton_kernels` has one of the operator's name for GPUs.
        by: how many leading tensors decide the memory format of the result.
        algebra: `eager` is for GPUs too, because sorting and indexing are what torch does best there.
    """
    _OTHERS.add(geometry)
    name, rest = signature.split("(", 1)
    arguments, result = rest.split(") -> ")
    _LIBRARY.define(f"{name}({arguments}, SymInt[] geometry) -> {result}", tags=(torch.Tag.pt2_compliant_tag,))

    known = functools.lru_cache(maxsize=1024)(functools.partial(of_numbers, geometry))

    def fake(*args: Any) -> Any:  # sizes may be symbolic, which have no hash
        return shapes(*args[:-1], of_numbers(geometry, args[-1]), memory_format(*args[:by]))

    def on_gpu(*args: Any) -> Any:
        run = eager if algebra else getattr(kernels(), name)
        return run(*args[:-1], known(tuple(args[-1])), memory_format(*args[:by]))

    def on_cpu(*args: Any) -> Any:
        run = eager if algebra or current_backend() == "eager" else getattr(interpreted_kernels(), name)
        return run(*args[:-1], known(tuple(args[-1])), memory_format(*args[:by]))

    overload = getattr(torch.ops.torchconv, name).default

    def under_autocast(device_type: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with torch.autocast(device_type, enabled=False):
                return overload(*args)

        return call

    for device_type, key, implementation in (("cpu", "CPU", on_cpu), ("cuda", "CUDA", on_gpu)):
        _LIBRARY.impl(name, implementation, key)
        # It would round the float32 sums of a half-precision product to half precision.
        _LIBRARY.impl(name, under_autocast(device_type), f"Autocast{key}")
    torch.library.register_fake(f"torchconv::{name}", fake, lib=_LIBRARY)

    def call(*args: Any) -> Any:
        if is_dynamo_compiling():
            return overload(*args[:-1], to_numbers(args[-1]))
        straight = _straight(args)
        try:
            below = _idle.pop()
        except IndexError:
            below = _BelowAutograd()
        with below:  # who asked for derivatives has called the Function
            result = eager(*args, memory_format(*args[:by])) if straight else overload(*args[:-1], _numbers(args[-1]))
        _idle.append(below)
        return result

    call.__name__, call.__doc__ = name, eager.__doc__
    call.geometry = geometry  # type: ignore[attr-defined]
    return call


# By names of this file: to find them in `torch._C`, one by one, takes as long as to call them.
transforms, grad_enabled = torch._C._are_functorch_transforms_active, torch.is_grad_enabled
_function_modes = torch._C._len_torch_function_stack
_trace, _profiled = torch._C._get_tracing_state, torch._C._autograd._profiler_enabled
_excluded, _included = torch._C._dispatch_tls_is_dispatch_key_excluded, torch._C._dispatch_tls_is_dispatch_key_included
_AUTOCAST, _FUNCTIONALIZE = torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.Functionalize
_is_special = torch._C._dispatch_isTensorSubclassLike  # sparse, batched, functional; any tensor where modes are active
_TENSORS = {Tensor, torch.nn.Parameter}
_OTHERS: set[type] = {type(None), bool}  # and the operators' geometries


def _straight(arguments: tuple[Any, ...]) -> bool:
    """Whether an operator with these arguments is for tensor algebra on a CPU, and nobody wants to see it.

    No mode, transform, trace, profiler or autocast, and no subclass or special kind of tensor.  Then the algebra is
    called as it is: the dispatcher, and the geometry as integers for it, take longer than all of torch.nn's smallest
    poolings.  Each of these questions is answered by a flag.  A set of dispatch keys would answer most at once, but
    torch makes an object of it, which takes ten times as long where other code has run in between.
    (torch's `ExecutionTraceObserver` cannot be asked for; without the profiler it sees the tensor algebra alone.)
    """
    if current_backend() != "eager" or _function_modes() or transforms() or _trace() or _profiled():
        return False
    # The first is excluded unless autocast is on.  Of the second, memory that is kept here would stay a wrapper.
    if not _excluded(_AUTOCAST) or _included(_FUNCTIONALIZE):
        return False
    for value in arguments:
        kind = type(value)
        if kind in _TENSORS:
            if not value.is_cpu or value.is_mkldnn or _is_special(value):
                return False
        elif kind not in _OTHERS:
            return False
    return True


def forward_mode() -> bool:
    """Whether anybody may ask for a derivative forward of what is computed now."""
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def differentiate(operator: Any, function: Any) -> None:
    """Make a Function the derivatives of its operator, for those who call that alone, as torch's compiler does.

    Args:
        operator: one of the functions below.
        function: a `torch.autograd.Function` of the same arguments, whose forward pass calls it.
    """
    overload = getattr(torch.ops.torchconv, operator.__name__).default

    def under_autograd(*args: Any) -> Any:
        if grad_enabled() or forward_mode():
            return function.apply(*args[:-1], of_numbers(operator.geometry, args[-1]))
        with _BelowAutograd():  # the Function's own forward pass, too
            return overload(*args)

    _LIBRARY.impl(operator.__name__, under_autograd, "Autograd")


_known_numbers = functools.lru_cache(maxsize=1024)(to_numbers)


def _numbers(geometry: object) -> Sequence[int]:
    try:
        return _known_numbers(geometry)
    except TypeError:  # symbolic sizes have no hash
        return to_numbers(geometry)


def _empty(like: Tensor, size: Sequence[int], format: torch.memory_format, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=format)


def _fprop_shape(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format
) -> Tensor:
    return _empty(x, (x.shape[0], w.shape[0], *geometry.output), format)


def _dgrad_shape(
    g: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, format: torch.memory_format
) -> Tensor:
    return _empty(g, (g.shape[0], w.shape[1] * geometry.groups, *geometry.input), format)


def _wgrad_shape(
    x: Tensor, g: Tensor, with_bias: bool, geometry: ConvGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    size = (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    return _empty(g, size, format), g.new_empty(g.shape[1] if with_bias else 0)


def _block_shape(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    size = (x.shape[0], w.shape[0], *geometry.pooled)
    return _empty(x, size, format), _empty(x, size, format, torch.uint8)


def _block_dgrad_shape(
    g: Tensor, winner: Tensor, w: Tensor, geometry: BlockGeometry, format: torch.memory_format
) -> Tensor:
    return _dgrad_shape(g, w, None, geometry, format)


def _block_wgrad_shape(
    x: Tensor, g: Tensor, winner: Tensor, with_bias: bool, geometry: BlockGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    return _wgrad_shape(x, g, with_bias, geometry, format)


def _max_pool_shape(x: Tensor, geometry: PoolGeometry, format: torch.memory_format) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:2], *geometry.output)
    return _empty(x, size, format), _empty(x, size, format, eager_pool.offset_dtype(geometry))


def _fractional_shape(
    x: Tensor, starts: Tensor, geometry: FractionalGeometry, format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:2], *geometry.output)
    return _empty(x, size, format), _empty(x, size, format, torch.int64)


def _index_shape(x: Tensor, index: Tensor, geometry: IndexGeometry, format: torch.memory_format) -> Tensor:
    return _empty(x, index.shape, format)


def _output_shape(x: Tensor, *args: Any) -> Tensor:
    geometry, format = args[-2:]
    return _empty(x, (*x.shape[:2], *geometry.output), format)


def _input_shape(g: Tensor, *args: Any) -> Tensor:
    geometry, format = args[-2:]
    return _empty(g, (*g.shape[:2], *geometry.input), format)


conv_fprop = _operator(
    "conv_fprop(Tensor x, Tensor w, Tensor? bias) -> Tensor", ConvGeometry, _fprop_shape, eager_conv.fprop, by=2
)
conv_dgrad = _operator(
    "conv_dgrad(Tensor g, Tensor w, Tensor? bias) -> Tensor", ConvGeometry, _dgrad_shape, eager_conv.dgrad, by=2
)
conv_wgrad = _operator(
    "conv_wgrad(Tensor x, Tensor g, bool with_bias) -> (Tensor, Tensor)",
    ConvGeometry,
    _wgrad_shape,
    eager_conv.wgrad,
    by=2,
)
block_fprop = _operator(
    "block_fprop(Tensor x, Tensor w, Tensor? bias) -> (Tensor, Tensor)",
    BlockGeometry,
    _block_shape,
    eager_block.fprop,
    by=2,
)
block_dgrad = _operator(
    "block_dgrad(Tensor g, Tensor winner, Tensor w) -> Tensor",
    BlockGeometry,
    _block_dgrad_shape,
    eager_block.dgrad,
    by=3,
)
block_wgrad = _operator(
    "block_wgrad(Tensor x, Tensor g, Tensor winner, bool with_bias) -> (Tensor, Tensor)",
    BlockGeometry,
    _block_wgrad_shape,
    eager_block.wgrad,
    by=2,
)
max_pool = _operator("max_pool(Tensor x) -> (Tensor, Tensor)", PoolGeometry, _max_pool_shape, eager_pool.max_pool, by=1)
max_pool_gather = _operator(
    "max_pool_gather(Tensor x, Tensor offset) -> Tensor", PoolGeometry, _output_shape, eager_pool.max_pool_gather, by=1
)
max_pool_scatter = _operator(
    "max_pool_scatter(Tensor g, Tensor offset) -> Tensor", PoolGeometry, _input_shape, eager_pool.max_pool_scatter, by=1
)
avg_pool = _operator("avg_pool(Tensor x) -> Tensor", AvgGeometry, _output_shape, eager_pool.avg_pool, by=1)
avg_pool_grad = _operator(
    "avg_pool_grad(Tensor g) -> Tensor", AvgGeometry, _input_shape, eager_pool.avg_pool_grad, by=1
)

fractional_max_pool = _operator(
    "fractional_max_pool(Tensor x, Tensor starts) -> (Tensor, Tensor)",
    FractionalGeometry,
    _fractional_shape,
    eager_indexed.fractional_max_pool,
    by=1,
)
index_gather = _operator(
    "index_gather(Tensor x, Tensor index) -> Tensor",
    IndexGeometry,
    _index_shape,
    eager_indexed.index_gather,
    by=1,
    algebra=True,
)
index_scatter = _operator(
    "index_scatter(Tensor g, Tensor index) -> Tensor",
    IndexGeometry,
    _input_shape,
    eager_indexed.index_scatter,
    by=1,
    algebra=True,
)
max_unpool = _operator(
    "max_unpool(Tensor x, Tensor index) -> Tensor",
    IndexGeometry,
    _input_shape,
    eager_indexed.max_unpool,
    by=1,
    algebra=True,
)

# The block's winner where no element of the window is positive.
DEAD = eager_block.DEAD

# No operator: elementwise on every device, and so that tracing and vmap see through it.
winner_index = eager_pool.winner_index
