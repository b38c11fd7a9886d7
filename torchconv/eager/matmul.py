"""Batches of matrix products: what the convolutions are made of."""

from __future__ import annotations

import torch
from torch import Tensor

# `torch.bmm` goes to MKL, which keeps to AVX2 on CPUs that are not Intel's; oneDNN, which torch brings too, takes what
# the CPU has.  On an AMD EPYC with AVX-512 (Zen 5) a core makes 100 GFLOP/s by the first and 220 by the second; with
# AVX2 alone (Zen 3) both make 80.  This operator, what torch's compiler turns a linear layer into, is the way to
# oneDNN's product in float32; builds without oneDNN do not have it.
_HAS_AVX512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _HAS_AVX512 else None
# Multiplications from which on it is worth its call, which takes 12 µs, and `torch.mm`'s 1.
_WORTHWHILE = 1 << 19


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out[i] = a[i] @ b[i], of a [B, M, K] and b [B, K, N]."""
    if _by_onednn(a, b):
        for left, right, result in zip(a, b, out):
            result.copy_(_onednn(left, right))
    else:
        torch.bmm(a, b, out=out)


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out[i] += a[i] @ b[i]."""
    if _by_onednn(a, b):
        for left, right, result in zip(a, b, out):
            result += _onednn(left, right)
    else:
        out.baddbmm_(a, b)


def add_sum_of_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += Σ_i a[i] @ b[i], in this order."""
    if _by_onednn(a, b):
        for left, right in zip(a, b):
            out += _onednn(left, right)
    else:
        out.addbmm_(a, b)


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    return _ONEDNN is not None and a.dtype == torch.float32 and a.shape[1:].numel() * b.shape[2] >= _WORTHWHILE


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    return _ONEDNN(left, right.mT, None, "none", [], "")  # type: ignore[misc]
