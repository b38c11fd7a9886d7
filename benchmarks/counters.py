"""Count what kernels do in the interpreter: multiply-adds issued, lanes, bytes and sectors moved.

    with counted() as launches:
        triton_kernels.conv_fprop(...)
    launches[0].dot_flops, launches[0].traffic["p_x"].sectors

The counts depend on the launch alone, not on the machine: they are what the kernel asks for.  A sector is counted once
per `tl.load` or `tl.store` of a program, as if the lanes of a whole tile were coalesced at once and nothing stayed in a
cache; or, as `footprint`, once per program, as if a program's own cache held all that it touches.  Needs
TRITON_INTERPRET=1.

A launch of many programs is counted by a sample of them: `counted(programs=24)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator

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
        footprint: distinct sectors of each program, summed over the programs.
        touched: which elements from the tensor's first to its last were accessed at all (of a sample: by the sample).
    """

    item: int
    touched: NDArray[np.bool_]
    lanes: int = 0
    active: int = 0
    bytes: int = 0
    sectors: int = 0
    footprint: int = 0

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
    def __init__(self, most: int | None) -> None:
        self.counts: list[Count] = []
        self._most = most
        self._weights: dict[Program, int] = {}
        self._program: Program = (0, 0, 0)
        self._seen: dict[str, list[NDArray[np.int64]]] = {}

    def programs(self, grid: Program) -> Iterable[Program]:
        self._weights = sample(grid, self._most or math.prod(grid))
        return self._weights

    def launch(self, launch: Launch) -> None:
        self.end_program()
        traffic = {argument.name: Traffic.of(argument) for argument in launch.arguments}
        self.counts.append(Count(launch.kernel, launch.grid, Counter(), traffic))

    def end_program(self) -> None:
        for name, seen in self._seen.items():
            distinct = np.unique(np.concatenate(seen)).size
            self.counts[-1].traffic[name].footprint += self._weights[self._program] * distinct
        self._seen = {}

    def access(self, launch: Launch, access: Access) -> None:
        if launch.program != self._program:
            self.end_program()
            self._program = launch.program
        weight, traffic = self._weights[launch.program], self.counts[-1].traffic[access.argument.name]
        sectors = np.unique((access.offsets + access.argument.address) // SECTOR)
        traffic.lanes += weight * access.lanes
        traffic.active += weight * access.offsets.size
        traffic.bytes += weight * access.offsets.size * traffic.item
        traffic.sectors += weight * sectors.size
        traffic.touched[access.offsets // traffic.item] = True
        self._seen.setdefault(access.argument.name, []).append(sectors)

    def dot(self, launch: Launch, m: int, n: int, k: int, dtype: str) -> None:
        self.counts[-1].dots[m, n, k, dtype] += self._weights[launch.program]


def sample(grid: Program, most: int) -> dict[Program, int]:
    """About `most` programs of a grid, and how many programs each stands for; the first and the last are among them.

    The grid, in the order in which it is launched, is cut into `most` equal stretches.  Each is represented by one
    program of it, at golden-ratio steps of its length, so that no period of the grid (the column tiles, the pixels of a
    row) is met at one phase alone.
    """
    total = math.prod(grid)
    cuts = [total * i // most for i in range(most + 1)] if most < total else list(range(total + 1))
    if most < total and cuts[-1] - cuts[-2] > 1:
        cuts.insert(-1, total - 1)
    weights = {}
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        number = low + int(i * _GOLDEN % 1 * (high - low))
        weights[number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])] = high - low
    return weights


_GOLDEN = (math.sqrt(5) - 1) / 2


@contextlib.contextmanager
def counted(programs: int | None = None) -> Iterator[list[Count]]:
    """Count what every launch inside the `with` block does; yields the list of counts, one per launch.

    Args:
        programs: run about so many programs of each launch alone, and let each count for those around it; results are
            not computed then.
    """
    counting = _Counting(programs)
    with watch(counting, programs=counting.programs):
        yield counting.counts
        counting.end_program()
