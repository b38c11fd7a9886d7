"""Which implementation runs CPU tensors: plain tensor algebra, or the Triton kernels through Triton's interpreter.

The dispatcher decides by device: a CUDA (or ROCm) tensor always takes the Triton kernels.  This switch is about CPU
tensors alone, and exists so that the very kernels that a GPU runs can be tested, stepped through and learned from
without one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType

NAMES = ("eager", "triton")


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {NAMES}, but got {name!r}")
    return name


_default = _checked(os.environ.get("TORCHCONV_BACKEND", "eager"), "TORCHCONV_BACKEND")
_current: ContextVar[str] = ContextVar("torchconv_backend", default=_default)


# Name of the backend for CPU tensors: 'eager' or 'triton'.  (A function around it would be one more for every call.)
current_backend = _current.get


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run CPU tensors on backend `name` inside the `with` block; a backward pass inside it included.

    Args:
        name: 'eager' for plain tensor algebra (the default), 'triton' for the Triton kernels in Triton's interpreter:
            slow, for tests and for study.  The environment variable TORCHCONV_BACKEND sets it for a whole process.

    Raises:
        ValueError: `name` is neither.
        RuntimeError: 'triton' was asked for, and Triton is missing or cannot interpret in this process.

    Example:
        >>> with torchconv.backend("triton"):
        ...     y = torchconv.functional.conv2d(x, w)
    """
    if _checked(name, "backend") == "triton":
        interpreted_kernels()
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def interpreted_kernels() -> ModuleType:
    """The package `triton_kernels`, ready to run CPU tensors.

    Triton decides between compiling and interpreting when it is first imported, so this works if nobody has imported
    it yet, or if TRITON_INTERPRET=1 was in the environment when somebody did.
    """
    if "triton" not in sys.modules and not _gpu_present():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        package = kernels()
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"backend 'triton' needs Triton and numpy, but importing {error.name!r} failed: "
            f"install it with 'pip install {error.name}'"
        ) from error
    if not package.INTERPRETED:
        raise RuntimeError(
            "backend 'triton' runs CPU tensors in Triton's interpreter, but Triton was imported in this process to "
            "compile for a GPU: set the environment variable TRITON_INTERPRET=1 before Python starts"
        )
    return package


@functools.cache
def kernels() -> ModuleType:
    """The package `triton_kernels`: this project's, and not the other public one of that import name.

    Raises:
        RuntimeError: it is the other one that Python finds.
        ImportError: Triton is missing, or too old.
    """
    if message := other_kernels():
        raise RuntimeError(message)
    return importlib.import_module("triton_kernels")


def other_kernels() -> str | None:
    """What to say if it is not this project's `triton_kernels` that Python finds; imports nothing."""
    found = importlib.util.find_spec("triton_kernels")
    places = list(found.submodule_search_locations or [found.origin or ""]) if found else []
    if not places or any(os.path.exists(os.path.join(place, "conv_fprop.py")) for place in places):
        return None
    return (
        f"torchconv's kernels are in its package triton_kernels, but Python finds another package of that name in "
        f"{', '.join(places)}: remove that with 'pip uninstall triton_kernels' and install torchconv again, "
        f"or put the folder that torchconv is in before it on sys.path; until then all but the kernels works"
    )


def _gpu_present() -> bool:
    import torch

    return torch.cuda.is_available()
