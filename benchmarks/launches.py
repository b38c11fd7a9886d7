"""Kernels that a training step launches, and the host's time for it, on a GPU that is not there.

    python -m benchmarks.launches [--only lenet] [--target sm_90] [--json FILE]

A step is a model's forward pass and the gradients of all its parameters; loss and optimizer are not counted.  Ours goes
through the real launchers and Triton's own launching code, with a driver that launches nothing (`benchmarks.offline`).
What else it runs, and all that torch.nn runs, is counted in ATen operators that compute something: views, allocations
and shape queries are left out.  Every such operator launches at least one kernel on a GPU, and some more than one
(`convolution_backward` is counted once and makes up to three gradients), so of torch.nn this is a lower bound.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

import torchconv
import triton_kernels
from benchmarks import tables
from benchmarks.models import MODELS, Model
from benchmarks.offline import TARGETS, compiling_for

Step = Callable[[], Any]

# Operators that allocate or rename and launch nothing, beside those whose schema says that they return views.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
AIMS = {"LeNet-5, fused": 12}


@dataclass(frozen=True)
class Row:
    """Of one step.

    Attributes:
        kernels: launches of Triton kernels, by kernel.
        others: ATen operators that ours runs beside them.
        torchs: ATen operators of the same model on torch.nn.
        microseconds: of the host for the whole step on one sample, the CPU's computing of `others` included.
        launching: those of them that Triton takes to launch.
    """

    model: str
    kernels: dict[str, int]
    others: dict[str, int]
    torchs: dict[str, int]
    microseconds: float
    launching: float
    aim: int | None

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())


class Operators(TorchDispatchMode):
    """Counts the ATen operators that compute something, also inside the operators of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "torchconv":  # its implementation, with this mode on
            with self:
                return operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)
        name = operator.overloadpacket.__name__
        if not operator.is_view and name not in ALLOCATIONS:
            self.counts[name] += 1
        return operator(*args, **(kwargs or {}))


def step(model: torch.nn.Module, x: Tensor) -> Step:
    """Forward pass and the parameters' gradients, of a gradient that is given."""
    parameters = list(model.parameters())
    with torch.no_grad():
        g = torch.ones_like(model(x))
    return lambda: torch.autograd.grad(model(x), parameters, g)


def operators(run: Step) -> dict[str, int]:
    with Operators() as found:
        run()
    return dict(found.counts)


@contextlib.contextmanager
def on_no_gpu(target: str) -> Iterator[None]:
    """CPU tensors take the kernels as they are compiled for `target`, and no kernel runs."""
    # The switch that lets CPU tensors take the kernels asks whether these are interpreted.
    with compiling_for(target), mock.patch.object(triton_kernels, "INTERPRETED", True), torchconv.backend("triton"):
        yield


@contextlib.contextmanager
def launched() -> Iterator[list[tuple[str, float]]]:
    """The kernels that are launched inside the `with` block, and the seconds that each launch took."""
    launches: list[tuple[str, float]] = []
    run = JITFunction.run

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = run(self, *args, **kwargs)
        launches.append((self.__name__, time.perf_counter() - start))
        return result

    with mock.patch.object(JITFunction, "run", timed):
        yield launches


def measure(model: Model, target: str, repeat: int) -> Row:
    x = torch.randn(1, *model.size)
    with on_no_gpu(target):
        run = step(model.ours(), x)
        run()  # compiles
        others = operators(run)
        times, launching = [], []
        for _ in range(repeat):
            with launched() as launches:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            launching.append(sum(seconds for _, seconds in launches))
    return Row(
        model.name,
        dict(Counter(name for name, _ in launches)),
        others,
        operators(step(model.torchs(), x)),
        1e6 * statistics.median(times),
        1e6 * statistics.median(launching),
        AIMS.get(model.name),
    )


def table(found: list[Row]) -> str:
    columns = ("model", "our kernels", "other operators", "torch.nn's operators", "host µs", "of them launching", "aim")
    lines = []
    for row in found:
        aim = "" if row.aim is None else f"≤ {row.aim} kernels: {'met' if row.launches <= row.aim else 'MISSED'}"
        counts = (row.launches, sum(row.others.values()), sum(row.torchs.values()))
        lines.append((row.model, *counts, round(row.microseconds), round(row.launching), aim))
    return tables.markdown(columns, lines)


def details(found: list[Row]) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{times} {name}" for name, times in counts.items())

    return "\n".join(
        f"{row.model}: {listed(row.kernels)}; beside them {listed(row.others)}.  torch.nn: {listed(row.torchs)}."
        for row in found
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only models whose name holds this")
    parser.add_argument("--target", default="sm_90", choices=list(TARGETS), help="compiled for (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=200, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = [measure(model, options.target, options.repeat) for model in MODELS if options.only in model.name]
    print(table(found), details(found), sep="\n\n")
    if options.json:
        tables.save(options.json, [asdict(row) for row in found])


if __name__ == "__main__":
    main()
