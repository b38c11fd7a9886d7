"""What a call costs beside the computing: Function, operator and checks of arguments, on tiny inputs on the CPU.

    python -m benchmarks.host [--repeat 500] [--calls 4] [--json FILE]

Each row times a module of torch.nn, ours, and what ours computes with (the tensor algebra by itself), in turns, again
and again in one thread, and shows medians of these rounds.  `host` is ours without the algebra, and `ratio` the median
over the rounds of host to torch.nn's whole call, computing included.

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
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import tables
from torchconv import nn
from torchconv.eager import conv as eager_conv
from torchconv.eager import pool as eager_pool
from torchconv.geometry import AvgGeometry, ConvGeometry, PoolGeometry, of_numbers
from torchconv.layout import memory_format

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
# Of each operator: the algebra, the geometry, and how many tensors decide the layout of the result.
ALGEBRA: dict[str, tuple[Callable[..., Any], type, int]] = {
    "conv_fprop": (eager_conv.fprop, ConvGeometry, 2),
    "conv_dgrad": (eager_conv.dgrad, ConvGeometry, 2),
    "conv_wgrad": (eager_conv.wgrad, ConvGeometry, 2),
    "max_pool": (eager_pool.max_pool, PoolGeometry, 1),
    "max_pool_scatter": (eager_pool.max_pool_scatter, PoolGeometry, 1),
    "avg_pool": (eager_pool.avg_pool, AvgGeometry, 1),
    "avg_pool_grad": (eager_pool.avg_pool_grad, AvgGeometry, 1),
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


class _Operators(TorchDispatchMode):
    """Keeps every call of an operator of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "torchconv":
            self.calls.append((operator, args))
        return operator(*args, **(kwargs or {}))


def step(module: torch.nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
    """One call of a module, and in training its backward pass."""
    if mode == "training":
        with torch.no_grad():
            g = torch.ones_like(module(x))
        leaves = [x, *module.parameters()]
        return lambda: torch.autograd.grad(module(x), leaves, g)
    return lambda: module(x)


def algebra(run: Callable[[], Any]) -> Callable[[], Any]:
    """The tensor algebra of the operators that `run` calls, with the same arguments and nothing around it."""
    with _Operators() as operators:
        run()
    calls = []
    for operator, args in operators.calls:
        function, geometry, by = ALGEBRA[operator.name().removeprefix("torchconv::")]
        calls.append((function, (*args[:-1], of_numbers(geometry, tuple(args[-1])), memory_format(*args[:by]))))

    def compute() -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            for function, args in calls:
                function(*args)

    return compute


def microseconds(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls * 1e6


def measure(name: str, mode: str, repeat: int, calls: int) -> Row:
    arguments, size = CASES[name]
    x = torch.randn(size, requires_grad=mode != "no_grad")
    theirs, mine = (getattr(namespace, name)(*arguments) for namespace in (torch.nn, nn))
    with torch.no_grad() if mode == "no_grad" else nullcontext():
        runs = [step(theirs, x, mode), step(mine, x, mode)]
        runs.append(algebra(runs[1]))
        for run in runs:
            microseconds(run, calls)
        rounds = []
        for number in range(repeat):  # the algebra before and after ours, by turns: each warms the caches for the other
            order = (0, 1, 2) if number % 2 else (0, 2, 1)
            times = {index: microseconds(runs[index], calls) for index in order}
            rounds.append([times[index] for index in range(len(runs))])
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
    mean = math.exp(statistics.fmean(math.log(max(row.ratio, 1e-9)) for row in rows))
    return "\n".join([*lines, f"Geometric mean of the ratios: {mean:.1f}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=500, help="rounds of each row (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=4, help="calls in a row (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure(name, mode, options.repeat, options.calls) for name, mode in itertools.product(CASES, MODES)]
    print(table(rows))
    if options.json:
        tables.save(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
