"""Watch kernels run in Triton's interpreter: every launch, every load and store with its addresses, every dot product.

    with watch(watcher):
        y = triton_kernels.conv_fprop(...)

A watcher sees which *argument* an address was computed from, even if that address lies in another tensor: a pointer
argument carries its number in bits that no address uses, and arithmetic on it keeps them.  Arguments on the meta device
take part too: a load from one gives 0, a store is dropped, so a launch on tensors too big for this machine can be
checked for its addresses alone.

Needs TRITON_INTERPRET=1; run with Triton 3.2.0 to 3.8.0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter as upstream

from triton_kernels import INTERPRETED
from triton_kernels.interpreter import repair

Program = tuple[int, int, int]
Array = NDArray[Any]

_TAG_SHIFT = 48  # above every user-space address
_META_BASE = 1 << 44  # where a tensor without memory pretends to start: far from 0, so that offsets below it show


class Fault(Exception):
    """A kernel did what it must not; the message says which, where and in which program."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """A tensor that a kernel was launched with."""

    name: str
    tensor: Tensor

    @property
    def address(self) -> int:
        return _META_BASE if self.tensor.is_meta else self.tensor.data_ptr()


@dataclasses.dataclass
class Launch:
    """One launch of a kernel; `program` is the one that is running."""

    kernel: str
    grid: Program
    arguments: list[Argument]
    program: Program = (0, 0, 0)

    @property
    def program_number(self) -> int:
        x, y, z = self.program
        return x + self.grid[0] * (y + self.grid[1] * z)


@dataclasses.dataclass(frozen=True)
class Access:
    """One `tl.load` or `tl.store` of one program.

    Attributes:
        kind: "load" or "store".
        argument: the tensor whose pointer the addresses were computed from.
        offsets: bytes from the start of that tensor, one per active lane.
        lanes: number of lanes, masked-off ones included.
        values: what is stored, one per active lane; None for a load.
    """

    kind: str
    argument: Argument
    offsets: NDArray[np.int64]
    lanes: int
    values: Array | None


class Watcher:
    """Called as kernels run; a subclass overrides what it wants to know."""

    def launch(self, launch: Launch) -> None:
        """A kernel is launched."""

    def access(self, launch: Launch, access: Access) -> None:
        """A program is about to load or store."""

    def dot(self, launch: Launch, m: int, n: int, k: int, dtype: str) -> None:
        """A program multiplies [m, k] by [k, n], operands of Triton type `dtype`."""

    def atomic(self, launch: Launch) -> None:
        """A program is about to run an atomic operation."""


@contextlib.contextmanager
def watch(
    watcher: Watcher, overflow: bool = False, programs: Callable[[Program], Iterable[Program]] | None = None
) -> Iterator[None]:
    """Report to `watcher` what kernels do inside the `with` block.

    Lanes that a load masks off without `other` hold a pattern of ones (a NaN, if floating), for on a GPU they hold
    anything.

    Args:
        overflow: raise `Fault` where 32-bit integer arithmetic wraps.
        programs: which programs of a grid to run, if not all.

    Raises:
        RuntimeError: kernels are compiled in this process, not interpreted.
    """
    if not INTERPRETED:
        raise RuntimeError("watching kernels needs Triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    repair()
    builder = upstream.interpreter_builder
    original, options, executor = type(builder), builder.options, upstream.GridExecutor
    state = _State(watcher, programs or _all_programs)
    builder.__class__ = _watching_builder(original, state)
    builder.options = dataclasses.replace(options, sanitize_overflow=overflow, debug=overflow)
    upstream.GridExecutor = _watching_executor(executor, state)
    try:
        yield
    finally:
        builder.__class__, builder.options, upstream.GridExecutor = original, options, executor


def site() -> str:
    """Line of kernel code that is running, as file:line."""
    frame, in_triton = inspect.currentframe(), False
    while frame and not (in_triton and not _is_triton(frame)):
        in_triton = in_triton or _is_triton(frame)
        frame = frame.f_back
    return _where(frame) if frame else "?"


@dataclasses.dataclass
class _State:
    watcher: Watcher
    programs: Callable[[Program], Iterable[Program]]
    launch: Launch | None = None


def _all_programs(grid: Program) -> Iterator[Program]:
    return itertools.product(*map(range, grid))  # type: ignore[return-value]


def _is_triton(frame: FrameType) -> bool:
    return "/triton/" in frame.f_code.co_filename


def _where(frame: FrameType, line: int | None = None) -> str:
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{line or frame.f_lineno}"


def _watching_builder(base: type, state: _State) -> type:
    handle = upstream.TensorHandle

    class WatchingBuilder(base):  # type: ignore[misc, valid-type]
        def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
            argument, addresses, active = _report(state, "load", ptrs, mask)
            if other is None:
                numpy_type = upstream._get_np_dtype(ptrs.get_element_ty())
                ones = np.full(addresses.shape, 0xFF, np.uint8)[..., None].repeat(numpy_type.itemsize, -1)
                other = handle(ones.view(numpy_type)[..., 0], ptrs.get_element_ty())
            if argument is None or argument.tensor.is_meta:
                zero = np.zeros((), upstream._get_np_dtype(ptrs.get_element_ty()))
                return handle(np.where(active, zero, other.data).astype(zero.dtype), ptrs.get_element_ty())
            pointers = handle(addresses, ptrs.dtype)
            return super().create_masked_load(pointers, handle(active, mask.dtype), other, *rest, **options)

        def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
            argument, addresses, active = _report(state, "store", ptrs, mask, value.data)
            if argument is None or argument.tensor.is_meta:
                return None
            value = handle(np.broadcast_to(value.data, addresses.shape), value.dtype)
            pointers = handle(addresses, ptrs.dtype)
            return super().create_masked_store(pointers, value, handle(active, mask.dtype), *rest, **options)

        def create_atomic_rmw(self, *args: Any) -> Any:
            state.watcher.atomic(state.launch)
            return super().create_atomic_rmw(*args)

        def create_atomic_cas(self, *args: Any) -> Any:
            state.watcher.atomic(state.launch)
            return super().create_atomic_cas(*args)

        def create_dot(self, a: Any, b: Any, *rest: Any) -> Any:
            m, k = a.data.shape[-2:]
            state.watcher.dot(state.launch, m, b.data.shape[-1], k, str(a.dtype.scalar))
            return super().create_dot(a, b, *rest)

    return WatchingBuilder


def _report(
    state: _State, kind: str, ptrs: Any, mask: Any, values: Array | None = None
) -> tuple[Argument | None, Array, Array]:
    """Tell the watcher of an access; returns its argument, the true addresses and the active lanes."""
    launch = state.launch
    shape = np.broadcast_shapes(ptrs.data.shape, mask.data.shape)
    tagged = np.broadcast_to(ptrs.data, shape)
    active = np.broadcast_to(mask.data, shape).astype(bool)  # the interpreter makes integers of some conditions
    addresses = tagged & np.uint64((1 << _TAG_SHIFT) - 1)
    tags = np.unique(tagged[active] >> np.uint64(_TAG_SHIFT))
    if tags.size == 0:
        return None, addresses, active
    known = range(1, len(launch.arguments) + 1)
    if tags.size > 1 or int(tags[0]) not in known:
        raise Fault(f"{launch.kernel}: {kind} far outside every tensor at {site()}, program {launch.program}")
    argument = launch.arguments[int(tags[0]) - 1]
    offsets = addresses[active].astype(np.int64) - argument.address
    stored = None if values is None else np.broadcast_to(values, shape)[active]
    state.watcher.access(launch, Access(kind, argument, offsets, active.size, stored))
    return argument, addresses, active


def _watching_executor(base: type, state: _State) -> type:
    class WatchingExecutor(base):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            names = inspect.signature(self.fn).parameters
            bound = inspect.getcallargs(self.fn, *args, **{k: v for k, v in kwargs.items() if k in names})
            arguments: list[Argument] = []
            converted = {n: a if n in self.constexprs else _convert(n, a, arguments) for n, a in bound.items()}
            grid = self.grid(converted) if callable(self.grid) else self.grid
            grid = tuple(grid) + (1,) * (3 - len(grid))
            state.launch = Launch(self.fn.__name__, grid, arguments)
            state.watcher.launch(state.launch)
            scope = upstream._patch_lang(self.fn)
            builder = upstream.interpreter_builder
            try:
                builder.set_grid_dim(*grid)
                for program in state.programs(grid):
                    state.launch.program = program
                    builder.set_grid_idx(*program)
                    self.fn(**converted)
            except Exception as error:
                _reraise(error, state.launch)
            finally:
                if scope is not None:
                    scope.restore()

    return WatchingExecutor


def _convert(name: str, value: Any, arguments: list[Argument]) -> Any:
    """What the kernel gets for `value`; a tensor is entered into `arguments` and becomes a tagged pointer."""
    converted = upstream._implicit_cvt(value)
    if isinstance(value, Tensor):
        if value.device.type not in ("cpu", "meta"):
            raise RuntimeError(f"{name} is on device {value.device}: only kernels on CPU tensors can be watched")
        arguments.append(Argument(name, value))
        converted.handle.data = np.array([(len(arguments) << _TAG_SHIFT) + arguments[-1].address], dtype=np.uint64)
    return converted


def _reraise(error: Exception, launch: Launch) -> None:
    """Raise what went wrong in a kernel without the interpreter's wrapping of it."""
    cause: BaseException = error
    while isinstance(cause, upstream.InterpreterError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, AssertionError) and "overflow" in str(cause):
        trace, line = cause.__traceback__, "?"
        while trace is not None:
            if not _is_triton(trace.tb_frame):
                line = _where(trace.tb_frame, trace.tb_lineno)
            trace = trace.tb_next
        raise Fault(f"{launch.kernel}: {cause} at {line}, program {launch.program}") from error
    if cause is error:
        raise
    raise cause


def numel_of_span(tensor: Tensor) -> int:
    """Elements from a tensor's first to its last one in memory, gaps included."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


def elements_of(tensor: Tensor) -> Array | None:
    """Which elements of its span a tensor has, as booleans; None if all."""
    span = numel_of_span(tensor)
    if span == tensor.numel() or tensor.is_meta:
        return None
    owned = torch.zeros(span, dtype=torch.bool)
    owned.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return owned.numpy()
