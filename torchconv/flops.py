"""Multiplications and additions of each operator, for `torch.utils.flop_counter.FlopCounterMode`.

A convolution multiplies every element of its output with each tap of the kernel and each channel of the group, and so
do its two gradients, which are sums of the same terms, ordered otherwise: one formula serves the three products, and
the fused block, whose convolution is computed in full.  As torch's formulas, it counts no bias and no pooling, and
counts padding as if it were there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]


def _of_weight(samples: int, weight: Shape, geometry: Sequence[int]) -> int:
    """Twice N · output · O · C/groups · kernel, for the weight's shape and the geometry: input, output, …"""
    rank = len(weight) - 2
    return 2 * samples * math.prod(geometry[rank : 2 * rank]) * math.prod(weight)


def _conv_product(first: Shape, w: Shape, bias: Any, geometry: Sequence[int], **_: Any) -> int:
    return _of_weight(first[0], w, geometry)


def _block_dgrad(g: Shape, winner: Shape, w: Shape, geometry: Sequence[int], **_: Any) -> int:
    return _of_weight(g[0], w, geometry)


def _conv_wgrad(x: Shape, g: Shape, with_bias: bool, geometry: Sequence[int], *, out_shape: Any, **_: Any) -> int:
    return _of_weight(x[0], out_shape[0], geometry)


def _block_wgrad(x: Shape, g: Shape, winner: Shape, with_bias: bool, geometry: Any, *, out_shape: Any, **_: Any) -> int:
    return _of_weight(x[0], out_shape[0], geometry)


_OPERATORS = torch.ops.torchconv
register_flop_formula([_OPERATORS.conv_fprop, _OPERATORS.conv_dgrad, _OPERATORS.block_fprop])(_conv_product)
register_flop_formula(_OPERATORS.conv_wgrad)(_conv_wgrad)
register_flop_formula(_OPERATORS.block_dgrad)(_block_dgrad)
register_flop_formula(_OPERATORS.block_wgrad)(_block_wgrad)
