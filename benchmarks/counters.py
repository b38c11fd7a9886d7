"""Count what kernels do in the interpreter: multiply-adds issued, lanes, bytes and sectors moved.

    with counted() as launches:
        triton_kernels.conv_fprop(...)
    launches[0].dot_flops, launches[0].traffic["p_x"].sectors

The counts depend on the launch alone, not on the machine: they are what the kernel asks for.  A sector is counted once
per `tl.load` or `tl.store` of a program, as if the lanes of a whole tile were coalesced at once and nothing stayed in a
cache.  Needs TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.trace import Access, Argument, Launch, Program, Watcher, numel_of_span, watch

SECTOR = 32  # bytes: the least that a GPU moves between its memory and its caches


@dataclasses.dataclass
class Traffic:
    """Accesses to one argument of a launch.

    Attributes:
        lanes: lanes of all loads and stores, masked-off ones included.
        active: those that were not masked off.
        bytes: what the active lanes moved.
        sectors: distinct sectors of each access, summed over all of them.
        touched: which elements from the tensor's first to its last were accessed at all.
    """

    item: int
    touched: NDArray[np.bool_]
    lanes: int = 0
    active: int = 0
    bytes: int = 0
    sectors: int = 0

    @staticmethod
    def of(argument: Argument) -> Traffic:
        return Traffic(argument.tensor.element_size(), np.zeros(numel_of_span(argument.tensor), dtype=bool))

    @property
    def compulsory(self) -> int:
        """Bytes of the elements accessed, each once: the least that any kernel could move."""
        return int(self.touched.sum()) * self.item

    @property
    def excess(self) -> float:
        """Bytes of the sectors moved, by the compulsory bytes."""
        return self.sectors * SECTOR / self.compulsory if self.compulsory else 0.0


@dataclasses.dataclass
class Count:
    """One launch of a kernel.

    Attributes:
        dots: how often a tile product [m, k] × [k, n] of operands of a type was issued, by (m, n, k, type).
        traffic: by argument's name.
    """

    kernel: str
    grid: Program
    dots: Counter[tuple[int, int, int, str]]
    traffic: dict[str, Traffic]

    @property
    def dot_flops(self) -> int:
        """Multiplications and additions issued, those of padding and masked-off lanes included."""
        return sum(2 * m * n * k * times for (m, n, k, _), times in self.dots.items())

    @property
    def sectors(self) -> int:
        return sum(traffic.sectors for traffic in self.traffic.values())

    @property
    def active(self) -> float:
        """Part of the lanes that loaded or stored something."""
        lanes = sum(traffic.lanes for traffic in self.traffic.values())
        return sum(traffic.active for traffic in self.traffic.values()) / lanes if lanes else 0.0


class _Counting(Watcher):
    def __init__(self) -> None:
        self.counts: list[Count] = []

    def launch(self, launch: Launch) -> None:
        traffic = {argument.name: Traffic.of(argument) for argument in launch.arguments}
        self.counts.append(Count(launch.kernel, launch.grid, Counter(), traffic))

    def access(self, launch: Launch, access: Access) -> None:
        traffic = self.counts[-1].traffic[access.argument.name]
        traffic.lanes += access.lanes
        traffic.active += access.offsets.size
        traffic.bytes += access.offsets.size * traffic.item
        traffic.sectors += np.unique((access.offsets + access.argument.address) // SECTOR).size
        traffic.touched[access.offsets // traffic.item] = True

    def dot(self, launch: Launch, m: int, n: int, k: int, dtype: str) -> None:
        self.counts[-1].dots[m, n, k, dtype] += 1


@contextlib.contextmanager
def counted() -> Iterator[list[Count]]:
    """Count what every launch inside the `with` block does; yields the list of counts, one per launch."""
    counting = _Counting()
    with watch(counting):
        yield counting.counts
