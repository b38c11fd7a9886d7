"""What a call costs beside the computing: Function, operator and checks of arguments, on tiny inputs on the CPU.

    python -m benchmarks.host [--repeat 500] [--calls 4] [--json FILE]

Each row times a module of torch.nn and ours in turns, again and again in one thread, and shows medians of these rounds.
`algebra` is the time that ours spends in the tensor algebra of its operators, by a clock that stops at the beginning
and at the end of each (and is a cost of ours); `host` is ours without it, and `ratio` the median over the rounds of
host to torch.nn's whole call, computing included.

Few calls in a row, the default, come as near to a model as this can, where other layers run in between: of many, those
of torch.nn have the processor's caches for themselves.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables
from torchconv import nn, ops

# For each module: its arguments, and the size of its input.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Conv1d": ((2, 2, 3), (1, 2, 5)),
    "Conv2d": ((2, 2, 3), (1, 2, 5, 5)),
    "Conv3d": ((2, 2, 3), (1, 2, 5, 5, 5)),
    "ConvTranspose2d": ((2, 2, 3), (1, 2, 5, 5)),
    "MaxPool2d": ((2,), (1, 2, 4, 4)),
    "AvgPool2d": ((2,), (1, 2, 4, 4)),
    "AdaptiveAvgPool2d": ((1,), (1, 2, 4, 4)),
}
# Without a graph, with one, and through it to the gradients.
MODES = ("no_grad", "forward", "training")


@dataclass
class Row:
    """Medians, in microseconds per call."""

    module: str
    mode: str
    torch: float
    ours: float
    algebra: float
    host: float
    ratio: float


class Stopwatch:
    """Adds up the time that is spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def clocked_algebra() -> Stopwatch:
    """Put a stopwatch into every operator of this process, around its tensor algebra: which it knows as `eager`."""
    stopwatch = Stopwatch()
    for operator in vars(ops).values():
        if hasattr(operator, "geometry"):
            cell = operator.__closure__[operator.__code__.co_freevars.index("eager")]
            cell.cell_contents = stopwatch.timing(cell.cell_contents)
    return stopwatch


def step(module: torch.nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
    """One call of a module, and in training its backward pass."""
    if mode == "training":
        with torch.no_grad():
            g = torch.ones_like(module(x))
        leaves = [x, *module.parameters()]
        return lambda: torch.autograd.grad(module(x), leaves, g)
    return lambda: module(x)


def microseconds(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls * 1e6


def measure(name: str, mode: str, repeat: int, calls: int, stopwatch: Stopwatch) -> Row:
    arguments, size = CASES[name]
    x = torch.randn(size, requires_grad=mode != "no_grad")
    theirs, mine = (getattr(namespace, name)(*arguments) for namespace in (torch.nn, nn))
    with torch.no_grad() if mode == "no_grad" else nullcontext():
        runs = [step(module, x, mode) for module in (theirs, mine)]
        for run in runs:
            microseconds(run, calls)
        rounds = []
        for _ in range(repeat):
            stopwatch.seconds = 0.0
            rounds.append([microseconds(run, calls) for run in runs] + [stopwatch.seconds / calls * 1e6])
    medians = [statistics.median(column) for column in zip(*rounds)]
    host = statistics.median(mine - alone for _, mine, alone in rounds)
    ratio = statistics.median((mine - alone) / theirs for theirs, mine, alone in rounds)
    return Row(name, mode, *medians, host, ratio)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| module | mode | torch.nn, µs | ours, µs | algebra, µs | host, µs | host / torch.nn |", "|" + "---|" * 7]
    for row in rows:
        numbers = (f"{value:.1f}" for value in (row.torch, row.ours, row.algebra, row.host, row.ratio))
        lines.append(f"| {row.module} | {row.mode} | {' | '.join(numbers)} |")
    mean = math.exp(statistics.fmean(math.log(row.ratio) for row in rows))
    return "\n".join([*lines, f"Geometric mean of the ratios: {mean:.1f}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=500, help="rounds of each row (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=4, help="calls in a row (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stopwatch, cases = clocked_algebra(), itertools.product(CASES, MODES)
    rows = [measure(name, mode, options.repeat, options.calls, stopwatch) for name, mode in cases]
    print(table(rows))
    if options.json:
        tables.save(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
