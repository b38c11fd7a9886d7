"""The CPU path against torch.nn: a LeNet-5 training step, its layers, and convolutions and poolings of other shapes.

    python -m benchmarks.cpu                                 a table of everything
    python -m benchmarks.cpu --only lenet --json times.json  rows whose name holds a word, and the figures as JSON

Ours and torch's run in turns in one process, each pair as near in time as can be, and the figure is the median over the
pairs of torch's time ÷ ours: above 1, ours is faster.  Whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import torchconv.nn
from benchmarks import tables
from benchmarks.layers import Layer
from torchconv.models import LeNet5

Run = Callable[[], Any]
BOTH = (torchconv.nn, torch.nn)


class Case(NamedTuple):
    """A row of the table: what ours runs, and what torch's."""

    name: str
    ours: Run
    torchs: Run


class Row(NamedTuple):
    """Milliseconds of either, and the median of the pairs' ratios."""

    name: str
    ours: float
    torchs: float
    ratio: float


LENET = (
    Layer("lenet conv1 1→6 5x5", lambda nn: nn.Conv2d(1, 6, 5, padding=2), (1, 28, 28), False),
    Layer("lenet conv1 3→6 5x5", lambda nn: nn.Conv2d(3, 6, 5), (3, 32, 32), False),
    Layer("lenet conv2 6→16 5x5", lambda nn: nn.Conv2d(6, 16, 5), (6, 14, 14)),
    Layer("lenet pool1 2x2", lambda nn: nn.MaxPool2d(2), (6, 28, 28)),
    Layer("lenet pool2 2x2", lambda nn: nn.MaxPool2d(2), (16, 10, 10)),
)
OTHERS = (
    Layer("conv 3x3 64→64", lambda nn: nn.Conv2d(64, 64, 3, padding=1), (4, 64, 56, 56)),
    Layer("conv 1x1 64→256", lambda nn: nn.Conv2d(64, 256, 1), (4, 64, 56, 56)),
    Layer("conv 3x3 /2 64→128", lambda nn: nn.Conv2d(64, 128, 3, 2, 1), (4, 64, 56, 56)),
    Layer("conv 1x1 /2 64→128", lambda nn: nn.Conv2d(64, 128, 1, 2), (4, 64, 56, 56)),
    Layer("conv depthwise 3x3 64", lambda nn: nn.Conv2d(64, 64, 3, padding=1, groups=64), (4, 64, 56, 56)),
    Layer("conv1d 5 32→64", lambda nn: nn.Conv1d(32, 64, 5, padding=2), (16, 32, 512)),
    Layer("conv3d 3x3x3 8→16", lambda nn: nn.Conv3d(8, 16, 3, padding=1), (2, 8, 16, 28, 28)),
    Layer("max pool 3x3 /2", lambda nn: nn.MaxPool2d(3, 2, 1), (4, 64, 56, 56)),
    Layer("max pool 3x3 /1", lambda nn: nn.MaxPool2d(3, 1, 1), (4, 64, 56, 56)),
    Layer("avg pool 2x2", lambda nn: nn.AvgPool2d(2), (64, 6, 28, 28)),
    Layer("avg pool 3x3 /2", lambda nn: nn.AvgPool2d(3, 2, 1), (4, 64, 56, 56)),
    Layer("adaptive avg pool 1", lambda nn: nn.AdaptiveAvgPool2d(1), (4, 64, 56, 56)),
    Layer("adaptive avg pool 5", lambda nn: nn.AdaptiveAvgPool2d(5), (4, 64, 56, 56)),
    Layer("adaptive max pool 1", lambda nn: nn.AdaptiveMaxPool2d(1), (4, 64, 56, 56)),
    Layer("adaptive max pool 5", lambda nn: nn.AdaptiveMaxPool2d(5), (4, 64, 56, 56)),
    Layer("max pool 1d 2", lambda nn: nn.MaxPool1d(2), (16, 32, 512)),
    Layer("avg pool 1d 2", lambda nn: nn.AvgPool1d(2), (16, 32, 512)),
    Layer("max pool 3d 2x2x2", lambda nn: nn.MaxPool3d(2), (2, 8, 16, 28, 28)),
    Layer("avg pool 3d 2x2x2", lambda nn: nn.AvgPool3d(2), (2, 8, 16, 28, 28)),
)


def cases() -> Iterator[Case]:
    """Every row of the table."""
    for variant, options in (("plain", {}), ("fused", {"fused": True})):
        for channels, pixels in ((1, 28), (3, 32)):
            for batch in (64, 256):
                name = f"lenet step {variant} {pixels}x{pixels}x{channels} batch {batch}"
                yield Case(
                    name,
                    training_step(batch, channels, pixels, torchconv.nn, **options),
                    training_step(batch, channels, pixels, torch.nn),
                )
    for batch in (64, 256):
        for layer in LENET:
            yield from of_layer(layer._replace(name=f"{layer.name} batch {batch}", size=(batch, *layer.size)))
    for layer in OTHERS:
        yield from of_layer(layer)


def training_step(batch: int, channels: int, pixels: int, nn: ModuleType, **options: Any) -> Run:
    """Forward, loss, backward and a step of SGD on one batch of LeNet-5."""
    torch.manual_seed(0)
    model = LeNet5(channels, pixels, nn=nn, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, labels = torch.randn(batch, channels, pixels, pixels), torch.randint(0, 10, (batch,))

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def of_layer(layer: Layer) -> Iterator[Case]:
    """A layer's forward pass, as in training, and its backward pass alone."""
    forward: list[Run] = []
    backward: list[Run] = []
    x = torch.randn(layer.size)
    for nn in BOTH:
        module, leaf = layer.build(nn), x.clone().requires_grad_(layer.input_gradient)
        y = module(leaf)
        asked = [*module.parameters(), *([leaf] if layer.input_gradient else [])]
        forward.append(functools.partial(module, leaf))
        backward.append(_backward(y, asked, torch.randn(y.shape)))
    yield Case(f"{layer.name} forward", *forward)
    yield Case(f"{layer.name} backward", *backward)


def _backward(y: Tensor, asked: list[Tensor], g: Tensor) -> Run:
    return lambda: torch.autograd.grad(y, asked, g, retain_graph=True)


def measured(case: Case, seconds: float, warmup: int = 3) -> Row:
    """Times in turns for so many seconds, and at least seven pairs."""
    for _ in range(warmup):
        case.ours()
        case.torchs()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 7 or time.perf_counter() < end:
        start = time.perf_counter()
        case.ours()
        middle = time.perf_counter()
        case.torchs()
        pairs.append((middle - start, time.perf_counter() - middle))
    ours, torchs = zip(*pairs)
    ratio = statistics.median(t / o for o, t in pairs)
    return Row(case.name, 1e3 * statistics.median(ours), 1e3 * statistics.median(torchs), ratio)


def machine() -> str:
    """The processor's name, its cores, the threads in use, and torch's version."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        name = next((value.strip() for key, value in fields.items() if key.strip() == "model name"), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(rows: list[Row]) -> str:
    lines = [f"{'':44} {'ours ms':>9} {'torch ms':>9} {'torch ÷ ours':>13}"]
    lines += [f"{row.name:44} {row.ours:9.3f} {row.torchs:9.3f} {row.ratio:13.2f}" for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name holds this")
    parser.add_argument("--threads", type=int, help="threads that torch takes; by default its own choice")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    chosen = [case for case in cases() if options.only in case.name]
    rows = [measured(case, options.seconds) for case in tqdm(chosen, unit="row")]
    print(machine())
    print(table(rows))
    if options.json:
        figures = {"machine": machine(), "rows": [row._asdict() for row in rows]}
        tables.save(options.json, figures)


if __name__ == "__main__":
    main()
