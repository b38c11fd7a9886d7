"""Integers that callers pass, and what follows from them, kept for the next call."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

# Sizes hold ints, or symbols, which have no hash.
_CONSTANTS = {int, bool, str, type(None), torch.Size, torch.dtype}


def is_integer(value: object) -> bool:
    """Whether `value` counts as an integer argument: as for torch, a bool does not, and an array only if it is one."""
    if type(value) is int:
        return True
    if isinstance(value, int):
        return not isinstance(value, bool)
    if hasattr(value, "node"):  # a symbolic size (torch.SymInt, while tracing)
        return True
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def as_tuple(value: int | Sequence[int], rank: int, name: str) -> tuple[int, ...]:
    """`value` as `rank` integers: an int or a sequence of one is repeated, as torch does."""
    if type(value) is int:  # most calls; what follows takes a microsecond
        return (value,) * rank
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = tuple(value)
        if len(values) == 1:
            values *= rank
    else:
        values = (value,) * rank
    if not all(map(is_integer, values)):
        raise TypeError(f"{name} must be an int or a tuple of {rank} ints, but got {name}={value!r}")
    if len(values) != rank:
        raise RuntimeError(
            f"expected {name} to be a single int or {rank} ints, one per dimension, but got {name}={value}"
        )
    return tuple(as_int(v) for v in values)


def as_int(value: Any) -> int:
    """An integer argument as an int (or as the symbolic size that it is)."""
    return value if isinstance(value, int) or hasattr(value, "node") else operator.index(value)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, computed once for constants and tuples of ints; for others, by name, and for Dynamo, each time."""

    @functools.lru_cache(maxsize=1024, typed=True)
    def kept(*args: Any) -> Any:
        if not all(type(value) in _CONSTANTS or type(value) is tuple for value in args):
            raise TypeError  # not to be kept: it may change.  What is found again is of the types that got here once
        return function(*args)

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if named or is_dynamo_compiling():
            return function(*args, **named)
        for value in args:
            if type(value) is tuple and not _are_ints(value):
                return function(*args)
        try:
            return kept(*args)
        except TypeError:  # symbols, what may change, or an error that comes again
            pass
        return function(*args)

    return call


def _are_ints(values: tuple[object, ...]) -> bool:
    for value in values:  # noqa: SIM110 - half the time of all(…)
        if type(value) is not int:  # True and 1.0 would be found as 1, and symbolic sizes have no hash
            return False
    return True
