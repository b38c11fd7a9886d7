"""Products in float32, where torch's setting allows that of matrices less."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

_SETTING: Any = getattr(torch.backends.mkldnn, "matmul", None)  # torch has it since 2.9
_EXACT = "ieee" if _SETTING else "highest"


class _Float32:
    """A `with` block in which products of float32 matrices are that, though torch's setting may allow less on a CPU.

    The setting is not about convolutions, says `torch.set_float32_matmul_precision`.  It is the process's: while one
    thread is in the block, all threads' products are precise, and the last one to leave restores it.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.RLock(), 0
        self.less: str | None = None  # what the setting was, if it allowed less

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                setting = _precision()
                self.less = None if setting in (_EXACT, "none") else setting
                if self.less:
                    _set_precision(_EXACT)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.less:
                _set_precision(self.less)


def _precision() -> str:
    return _SETTING.fp32_precision if _SETTING else torch.get_float32_matmul_precision()


def _set_precision(value: str) -> None:
    if _SETTING:
        _SETTING.fp32_precision = value
    else:
        torch.set_float32_matmul_precision(value)


_FLOAT32 = _Float32()


def in_float32(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator whose products round to no less than float32, whatever torch's setting for products allows."""

    @functools.wraps(operator)
    def exact(*args: Any) -> Any:
        with _FLOAT32:
            return operator(*args)

    return exact
