"""Triton's interpreter with checks: what a GPU would let pass in silence, or turn into garbage now and then.

    with checked() as checker:
        y = triton_kernels.conv_fprop(...)
    assert checker.unwritten(y) == 0

raises `Fault` at the kernel's line for

- a load or store outside the view that the pointer came from (the view, not its storage; gaps between strides too),
- two programs that store one element, or one that loads what another stored: their order is undefined,
- a program that loads what it stored itself: other threads may hold the element, and there is no barrier,
- two lanes of one store that write different values to one element,
- a load of memory that nobody has written since `torch.empty` made it,
- a stored value that a load had masked off without `other`,
- an atomic operation, whose order of summation is undefined,
- with `overflow=True`, 32-bit integer arithmetic that wraps (slower).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.trace import Access, Argument, Fault, Launch, Program, Watcher, elements_of, numel_of_span, site, watch

__all__ = ["Checker", "Fault", "checked"]

_NOBODY, _SEVERAL = -1, -2


@contextlib.contextmanager
def checked(
    overflow: bool = False, programs: Callable[[Program], Iterable[Program]] | None = None
) -> Iterator[Checker]:
    """Check every kernel that the interpreter runs inside the `with` block; see `benchmarks.trace.watch`."""
    checker = Checker()
    with checker.memory, watch(checker, overflow, programs):
        yield checker


class Checker(Watcher):
    def __init__(self) -> None:
        self.memory = _FreshMemory()
        self.launches: list[str] = []
        self._bounds: dict[str, _Bounds] = {}
        self._shadows: dict[int, _Shadow] = {}

    def unwritten(self, tensor: Tensor) -> int:
        """How many elements of `tensor`, made by `torch.empty` inside the block, no kernel has written."""
        return self.memory.unwritten(tensor)

    def launch(self, launch: Launch) -> None:
        self.launches.append(launch.kernel)
        self._bounds = {a.name: _Bounds.of(a.tensor) for a in launch.arguments}
        self._shadows = {}
        real = [a for a in launch.arguments if not a.tensor.is_meta and a.tensor.numel()]
        for argument in real:
            storage = argument.tensor.untyped_storage()
            unit = min(a.tensor.element_size() for a in real if _storage(a.tensor) == _storage(argument.tensor))
            self._shadows[_storage(argument.tensor)] = _Shadow.of(storage.nbytes() // unit, unit)

    def access(self, launch: Launch, access: Access) -> None:
        name, tensor = access.argument.name, access.argument.tensor

        def fault(what: str) -> Fault:
            return Fault(f"{launch.kernel}: {what} at {site()}, program {launch.program}")

        wrong = self._bounds[name].outside(access.offsets)
        if wrong:
            raise fault(f"{access.kind} of {wrong} element(s) out of bounds of `{name}` {list(tensor.shape)}")
        if access.values is not None:
            _check_values(access, fault)
        if tensor.is_meta:
            return
        start = _offset_in_storage(access.argument)
        shadow = self._shadows[_storage(tensor)]
        verb = shadow.conflict(access.kind, shadow.units(start + access.offsets, tensor), launch.program_number)
        if verb:
            raise fault(f"race on `{name}`: this program {verb}")
        fresh = self.memory.touch(access.kind, tensor, start + access.offsets)
        if fresh:
            raise fault(f"load of {fresh} element(s) of `{name}` that nobody has written")

    def atomic(self, launch: Launch) -> None:
        raise Fault(f"{launch.kernel}: atomic operation at {site()}, program {launch.program}")


@dataclasses.dataclass(frozen=True)
class _Bounds:
    """The elements of a view."""

    item: int
    span: int
    owned: NDArray[np.bool_] | None

    @staticmethod
    def of(tensor: Tensor) -> _Bounds:
        return _Bounds(tensor.element_size(), numel_of_span(tensor), elements_of(tensor))

    def outside(self, offsets: NDArray[np.int64]) -> int:
        """How many byte offsets are not where an element starts."""
        element = offsets // self.item
        good = (element >= 0) & (element < self.span) & (offsets % self.item == 0)
        if self.owned is not None:
            good &= self.owned[np.where(good, element, 0)]
        return int((~good).sum())


@dataclasses.dataclass(frozen=True)
class _Shadow:
    """Who loaded and who stored each unit of a storage during one launch."""

    unit: int
    stored: NDArray[np.int64]
    loaded: NDArray[np.int64]

    @staticmethod
    def of(size: int, unit: int) -> _Shadow:
        return _Shadow(unit, np.full(size, _NOBODY), np.full(size, _NOBODY))

    def units(self, offsets: NDArray[np.int64], tensor: Tensor) -> NDArray[np.int64]:
        per_element = np.arange(tensor.element_size() // self.unit)
        return ((offsets // self.unit)[:, None] + per_element).reshape(-1)

    def conflict(self, kind: str, units: NDArray[np.int64], program: int) -> str:
        """What is wrong with the access, or nothing; enters it."""
        stored, loaded = self.stored[units], self.loaded[units]
        if kind == "load":
            if ((stored != _NOBODY) & (stored != program)).any():
                return "loads what another stored"
            if (stored == program).any():
                return "loads what it stored itself, without a barrier"
            self.loaded[units] = np.where((loaded == _NOBODY) | (loaded == program), program, _SEVERAL)
            return ""
        if ((stored != _NOBODY) & (stored != program)).any():
            return "stores what another stored"
        if ((loaded != _NOBODY) & (loaded != program)).any():
            return "stores what another loaded"
        self.stored[units] = program
        return ""


class _FreshMemory(TorchDispatchMode):
    """Knows the tensors made by `torch.empty` and its kin while active, and which of their elements were written."""

    _MAKERS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")

    def __init__(self) -> None:
        super().__init__()
        # By storage; holding the tensor keeps its memory from being handed out again.
        self._written: dict[int, tuple[Tensor, NDArray[np.bool_]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") in self._MAKERS:
            if not result.is_meta and result.numel():
                storage = result.untyped_storage()
                written = np.zeros(storage.nbytes() // result.element_size(), dtype=bool)
                self._written[storage.data_ptr()] = (result, written)
        elif func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args):
                if isinstance(value, Tensor) and argument.alias_info is not None and argument.alias_info.is_write:
                    self._mark(value)
        return result

    def _mark(self, tensor: Tensor) -> None:
        """Torch has written to `tensor`: count all of its storage as written."""
        if not tensor.is_meta and _storage(tensor) in self._written:
            self._written[_storage(tensor)][1][:] = True

    def touch(self, kind: str, tensor: Tensor, offsets: NDArray[np.int64]) -> int:
        """Enter an access at byte offsets into the storage; how many elements a load found unwritten."""
        if _storage(tensor) not in self._written:
            return 0
        written = self._written[_storage(tensor)][1]
        elements = offsets // tensor.element_size()
        if kind == "load":
            return int((~written[elements]).sum())
        written[elements] = True
        return 0

    def unwritten(self, tensor: Tensor) -> int:
        if tensor.numel() == 0 or _storage(tensor) not in self._written:
            return 0
        written = self._written[_storage(tensor)][1][tensor.storage_offset() :][: numel_of_span(tensor)]
        owned = elements_of(tensor)
        return int((~written if owned is None else ~written & owned).sum())


def _check_values(access: Access, fault: Callable[[str], Fault]) -> None:
    values, order = access.values, np.argsort(access.offsets, kind="stable")
    assert values is not None
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    offsets = access.offsets[order]
    if ((offsets[1:] == offsets[:-1]) & (bits[order][1:] != bits[order][:-1])).any():
        raise fault(f"two lanes store different values to one element of `{access.argument.name}`")
    poison = bits == np.iinfo(bits.dtype).max
    if access.argument.tensor.is_floating_point() and poison.any():
        raise fault(f"store of {poison.sum()} value(s) that a load without `other` had masked off")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _offset_in_storage(argument: Argument) -> int:
    return argument.address - _storage(argument.tensor)
