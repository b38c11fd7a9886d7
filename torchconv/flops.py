"""Multiplications and additions of each operator, for `torch.utils.flop_counter.FlopCounterMode`.

A convolution multiplies every element of its output with each tap of the kernel and each channel of the group, and so
do its two gradients, which are sums of the same terms, ordered otherwise: one formula serves the three products, and
the fused block, whose convolution is computed in full.  As torch's formulas, it counts no bias and no pooling, and
counts padding as if it were there.

The counter imports Triton, and Triton decides when it is imported whether it interprets or compiles.  So the counter is
not imported here; whenever somebody imports it, before or after this package, it has the formulas.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
_COUNTER = "torch.utils.flop_counter"


def register_with_counter() -> None:
    """Give torch's counter the formulas: now if it is there, else once it is imported."""
    if counter := sys.modules.get(_COUNTER):
        _register(counter)
    else:
        sys.meta_path.insert(0, _OnImport())


class _OnImport(MetaPathFinder):
    """Finds the counter as everybody does, and has it given the formulas after its own code has run."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register
        return spec


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


def _register(counter: ModuleType) -> None:
    operators = torch.ops.torchconv
    for formula, names in (
        (_conv_product, ("conv_fprop", "conv_dgrad", "block_fprop")),
        (_conv_wgrad, ("conv_wgrad",)),
        (_block_dgrad, ("block_dgrad",)),
        (_block_wgrad, ("block_wgrad",)),
    ):
        counter.register_flop_formula([getattr(operators, name) for name in names])(formula)
