"""Helpers of more than one test file: paths, layouts, the reference and its tolerance."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchconv import functional

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
CONV = ("conv1d", "conv2d", "conv3d")
CONV_TRANSPOSE = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
MAX_POOL = ("max_pool1d", "max_pool2d", "max_pool3d")
AVG_POOL = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
POOL = MAX_POOL + AVG_POOL


def on_paths(
    names: Iterable[Any], kernels: Collection[Any] | None = None, eager: Sequence[str] = ("eager",)
) -> list[Any]:
    """Parameters (device, name): every name on the eager path, and those in `kernels` (None: all) on the kernels.

    Poolings have two eager paths: that for few values, and "passes" over many, which then few take as well.

    Triton's interpreter takes about 200 ms for a kernel's program, so without a GPU the kernels run the tiniest cases;
    with one they run all.
    """
    names = tuple(names)
    few = names if kernels is None or torch.cuda.is_available() else tuple(kernels)
    assert set(few) <= set(names)
    return [
        pytest.param(path, name, id=f"{path}-{str(name).removeprefix('torch.')}")
        for path, chosen in (*((path, names) for path in eager), ("kernels", few))
        for name in chosen
    ]


def rank_of(name: str) -> int:
    """Number of spatial dimensions of a function such as conv2d."""
    return int(name[-2])


def ours(name: str) -> Callable[..., Any]:
    return getattr(functional, name)


def torchs(name: str) -> Callable[..., Any]:
    return getattr(F, name)


def leaf(t: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    """A copy of `t` with its strides kept, that gradients flow to."""
    return t.detach().to(device, dtype, copy=True, memory_format=torch.preserve_format).requires_grad_()


def reference(
    name: str, tensors: Mapping[str, Tensor | None], gradient: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """torch.nn.functional's result in float64 on the CPU, and its gradients by the names of `tensors`.

    `gradient` is the result's own gradient; None for that of `y.sum()`.
    """
    exact = {key: None if t is None else t.detach().cpu().double().contiguous() for key, t in tensors.items()}
    leaves = {key: t.requires_grad_() for key, t in exact.items() if t is not None}
    y = torchs(name)(**exact, **arguments)
    g = torch.ones_like(y) if gradient is None else gradient.detach().cpu().double()
    return y.detach(), dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g)))


def assert_close(actual: Tensor, expected: Tensor, terms: int, what: str = "", roundings: int = 1) -> None:
    """`actual`, sums of `terms` products in its own dtype, are the float64 values `expected`.

    A result is rounded to its type, with a relative error of eps/2 and, after a bias, eps/2 of another value of the
    same size.  Before that, rounding `terms` partial sums of random sign in the accumulation type (float32 for half
    precision) makes a random walk: an error of about 0.35 · eps · √terms of the typical (root mean square) result, and
    the worst of some thousand results is four times that.  2 · √terms covers it.  A result of several steps, each
    rounded to its type, has so many `roundings`.
    """
    assert not actual.isnan().logical_xor(expected.isnan().to(actual.device)).any(), f"{what}: NaN where none belongs"
    eps = torch.finfo(actual.dtype).eps
    eps_sum = min(eps, torch.finfo(torch.float32).eps)
    typical = expected.nan_to_num(0, 0, 0).square().mean().sqrt().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.detach().cpu().double(),
        expected,
        rtol=roundings * eps,
        atol=2 * eps_sum * max(terms, 4) ** 0.5 * typical,
        equal_nan=True,
        msg=lambda message: f"{what}: {message}",
    )


def check_winners(name: str, x: Tensor, arguments: dict[str, Any], device: torch.device) -> None:
    """Values equal torch's in every bit, and so do the indices."""
    exact = x.double() if x.is_floating_point() else x.long() if name != "max_pool1d" else x.double()
    expected, expected_index = torchs(name)(exact.contiguous(), return_indices=True, **arguments)
    y, index = ours(name)(x.to(device), return_indices=True, **arguments)
    assert index.dtype is torch.int64
    torch.testing.assert_close(y.cpu(), expected.to(x.dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index.cpu(), expected_index)


LAYOUTS = ("contiguous", "channels_last", "permuted", "strided", "expanded")


def laid_out(t: Tensor, layout: str) -> Tensor:
    """`t` with other strides; the same values, save for 'expanded', which repeats one value."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":  # also for the 3-D tensors of one spatial dimension, which torch has no name for
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "permuted":  # the first dimension varies fastest
        return t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1])
    if layout == "strided":  # NaN before, between and after: reading any of it shows
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = t
        return wide[..., 1::2]
    assert layout == "expanded"
    return t.flatten()[:1].reshape((1,) * t.dim()).expand(t.shape)


def formats(t: Tensor) -> tuple[bool, bool]:
    """Whether a tensor is contiguous, and whether it is channels_last: both, where a size of 1 leaves that open."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim(), torch.contiguous_format)
    return t.is_contiguous(), t.is_contiguous(memory_format=last)


def signature(name: str) -> str:
    """Names, order and defaults of the arguments that a function of this package shares with torch's."""
    return _written([p for p in inspect.signature(ours(name)).parameters.values() if p.kind is not p.KEYWORD_ONLY])


def torchs_signature(name: str) -> str:
    """The same of torch's: from Python, or from the first line of its documentation."""
    documented = torchs(name).__doc__.strip().splitlines()[0].removesuffix(" -> Tensor")
    if documented.startswith(name.removesuffix("_with_indices") + "("):
        return documented.split("(", 1)[1]
    return _written(list(inspect.signature(torchs(name)).parameters.values()))


def _written(parameters: list[inspect.Parameter]) -> str:
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters) + ")"


def example(
    name: str, dtype: torch.dtype = torch.float32, larger: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A small call of any function of this package: the tensors that it is differentiable in, and the other arguments.

    Sizes differ from one another; batch and image are `larger` by so many.
    """
    rank = int(re.search(r"(\d)d", name)[1])

    def randn(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=device)

    # Unpooling a pooled odd size would need to be told.
    size = (2 * n + 2 * larger for n in (3, 4, 5)) if "unpool" in name else (n + larger for n in (5, 7, 6))
    x = randn(3 + larger, 4, *itertools.islice(size, rank))
    if "conv" in name:
        kernel = (3, 2, 2)[:rank]
        weight = randn(4, 3, *kernel) if "transpose" in name else randn(6, 2, *kernel)
        return {"input": x, "weight": weight, "bias": randn(6)}, {
            "stride": 1 if "relu" in name else 2,  # a pooled output of more than one pixel
            "padding": 1,
            "groups": 2,
        }
    if "unpool" in name:
        y, indices = torchs(f"max_pool{rank}d")(x, 2, return_indices=True)
        return {"input": y}, {"indices": indices, "kernel_size": 2}
    if "fractional" in name:
        u = torch.rand(*x.shape[:2], rank, dtype=dtype, device=device)
        return {"input": x}, {"kernel_size": 2, "output_size": (3, 4, 3)[:rank], "_random_samples": u}
    if "adaptive" in name:
        return {"input": x}, {"output_size": (3, 2, 3)[:rank]}
    if "lp_pool" in name:
        return {"input": x}, {"norm_type": 2, "kernel_size": 2}
    return {"input": x}, {"kernel_size": 3, "padding": 1}


class Recorder(TorchDispatchMode):
    """Records every operator that runs, also inside the operators of this package.

    A dispatch mode sees a custom operator as one call.  Here its implementation is called directly, with the mode on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((operator, args))
        if operator.namespace in ("aten", "prim", "prims"):
            return operator(*args, **(kwargs or {}))
        key = next(a.device.type for a in args if isinstance(a, Tensor)).upper()
        with self:
            return operator.redispatch(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)), *args)

    @property
    def names(self) -> list[str]:
        return [operator.name() for operator, _ in self.calls]

    @property
    def ours(self) -> list[str]:
        """Names of the operators of this package that ran."""
        return [name.removeprefix("torchconv::") for name in self.names if name.startswith("torchconv::")]

    @property
    def forbidden(self) -> list[str]:
        """The convolutions and poolings of any other library that ran."""
        return [name for name in self.names if re.search("conv|pool|im2col|col2im", name) and "torchconv::" not in name]
