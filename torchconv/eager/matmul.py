"""The matrix product that the convolutions are made of."""

from __future__ import annotations

import torch
from torch import Tensor

# `torch.mm` goes to MKL, which keeps to AVX2 on some CPUs; oneDNN, which torch brings too, takes what the CPU has.  On
# an AMD EPYC (Zen 5) a core makes 100 GFLOP/s by the first and 220 by the second.  This operator, what torch's compiler
# turns a linear layer into, is the way to oneDNN's product in float32; builds without oneDNN do not have it.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
# Multiplications from which on it is worth its call, which takes 12 µs and `torch.mm`'s 1.
_WORTHWHILE = 1 << 19


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [G, M, K] @ b [G, K, N], each matrix dense in its rows or in its columns; G products of one shape."""
    if _ONEDNN is None or a.dtype != torch.float32 or a[0].numel() * b.shape[2] < _WORTHWHILE:
        return a @ b
    products = [_ONEDNN(left, right.mT, None, "none", [], "") for left, right in zip(a, b)]
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)
