"""The second pass of wgrad: partial sums added up in fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import warps

_BLOCK = 256


@triton.jit
def add_splits_kernel(p_partial, p_w, p_bias, WEIGHTS, BIASES, SPLITS, BLOCK: tl.constexpr):
    """w̄[e] = Σ_s partial[s, e] for e < WEIGHTS, and b̄ from the BIASES elements after them; s in ascending order.

    One program adds BLOCK elements, in the type of the partial sums, and rounds them once.
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < WEIGHTS + BIASES
    acc = tl.zeros([BLOCK], dtype=p_partial.dtype.element_ty)
    p_partial += o
    for _ in range(SPLITS):
        acc += tl.load(p_partial, mask=m, other=0.0)
        p_partial += WEIGHTS + BIASES
    tl.store(p_w + o, acc.to(p_w.dtype.element_ty), mask=o < WEIGHTS)
    if p_bias is not None:
        tl.store(p_bias + o - WEIGHTS, acc.to(p_bias.dtype.element_ty), mask=m & (o >= WEIGHTS))


def partial_sums(splits: int, w: Tensor, bias: Tensor) -> Tensor:
    """Room for the partial sums of a weight and a bias gradient, one row for each split: float32, or float64."""
    wide = torch.float64 if w.dtype is torch.float64 else torch.float32
    return w.new_empty((splits, w.numel() + bias.numel()), dtype=wide)


def add_splits(partial: Tensor, w: Tensor, bias: Tensor) -> None:
    """Add the rows of `partial` into `w` and, if it has elements, `bias`; on the current device."""
    add_splits_kernel[(triton.cdiv(partial.shape[1], _BLOCK),)](
        partial,
        w,
        bias if bias.numel() else None,
        WEIGHTS=w.numel(),
        BIASES=bias.numel(),
        SPLITS=partial.shape[0],
        BLOCK=_BLOCK,
        num_warps=warps(_BLOCK // 4),  # 16 bytes a thread
    )
