"""Batches of matrix products: what the convolutions are made of.

A batch has two dimensions, groups and places; torch takes one at a time, so one of them is a loop.  Sums go over the
shorter.  What is written anew goes by group, for torch multiplies into a copy what then does not lie in one piece.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
from torch import Tensor


def _is_intels() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return "GenuineIntel" in file.read(1 << 10)
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


# Whether this is a CPU of Intel's.
INTELS = _is_intels()
# `torch.bmm` goes to MKL, which keeps to AVX2 on CPUs that are not Intel's; oneDNN, which torch brings too, takes what
# the CPU has.  On an AMD EPYC with AVX-512 (Zen 5) a core makes 100 GFLOP/s by the first and 220 by the second; with
# AVX2 alone (Zen 3) both make 80; on an Intel Xeon with AVX-512 (Sapphire Rapids) convolutions take by the first 0.6 to
# 0.8 of the time.  This operator, what torch's compiler turns a linear layer into, is the way to oneDNN's product in
# float32; builds without oneDNN do not have it.
_IS_ONEDNNS = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and not INTELS
)
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _IS_ONEDNNS else None
# Multiplications from which on it is worth its call, which takes 12 µs, and `torch.mm`'s 1.
_WORTHWHILE = 1 << 19


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out[g, l] = a[g] @ b[g, l], of a [G, M, K] and b [G, L, K, N]."""
    for left, right, result in _at_all_places(0, a, b, out):
        if _by_onednn(left, right):
            for one, other, to in zip(left, right, result):
                to.copy_(_onednn(one, other))
        else:
            torch.bmm(left, right, out=result)


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out[g, l] += a[g] @ b[g, l]."""
    for left, right, result in _at_all_places(_shorter(b), a, b, out):
        if _by_onednn(left, right):
            for one, other, to in zip(left, right, result):
                to += _onednn(one, other)
        else:
            result.baddbmm_(left, right)


def add_sum_of_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out[g] += Σ_l a[g, l] @ b[g, l], in this order."""
    dim = _shorter(b)
    by_group = dim == 0
    for number, (left, right) in enumerate(_along(dim, a, b)):
        result = out[number] if by_group else out
        if _by_onednn(left, right):
            for i, (one, other) in enumerate(zip(left, right)):
                (result if by_group else result[i]).add_(_onednn(one, other))
        elif by_group:
            result.addbmm_(left, right)
        else:
            result.baddbmm_(left, right)


def _at_all_places(dim: int, a: Tensor, b: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """a [G, M, K], the same at all places, and b, out [G, L, *] as batches in turn, see `_along`: views."""
    for number in range(b.shape[dim]):
        left = a if dim else a.select(0, number).expand(b.shape[1], -1, -1)
        yield left, b.select(dim, number), out.select(dim, number)


def _shorter(b: Tensor) -> int:
    return 0 if b.shape[0] <= b.shape[1] else 1


def _along(dim: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Tensors [G, L, *] as batches in turn: along 0 [L, *] for each group, along 1 [G, *] for each place."""
    for number in range(tensors[0].shape[dim]):
        yield [t.select(dim, number) for t in tensors]


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    return _ONEDNN is not None and a.dtype == torch.float32 and a.shape[1:].numel() * b.shape[2] >= _WORTHWHILE


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    return _ONEDNN(left, right.mT, None, "none", [], "")  # type: ignore[misc]
