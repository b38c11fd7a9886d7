"""On a GPU: ours against torch.nn (cuDNN or MIOpen), layer by layer, forward and backward, beside what the card can do.

    python -m benchmarks.gpu [--only 3x3] [--precisions fp16 tf32] [--json FILE]

Times are medians of `triton.testing.do_bench`, which clears the L2 cache before each run.  GB/s and TFLOP/s count what
the layer needs, not what a kernel does; `of copy` and `of matmul` set them beside a large copy and a large matrix
product of torch's in the same precision, measured in the same process.  A `<` marks every row in which ours is slower.
Without a GPU: one line on stderr, and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.testing
from torch import Tensor

import torchconv
import torchconv.nn
from benchmarks import tables
from benchmarks.layers import BLOCKS, LAYERS, Layer
from torchconv.geometry import ConvGeometry

Run = Callable[[], Any]
Timer = Callable[[Run], float]  # milliseconds of a call

# Of each precision: the type of the tensors, and whether float32 products may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "fp16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
}
# What is measured for the ceilings: bytes copied, and rows of the square matrices; both far beyond any cache.
COPIED, ROWS = 1 << 30, 8192


class Case(NamedTuple):
    """A layer of both sides, and the size of its input."""

    name: str
    ours: torch.nn.Module
    torchs: torch.nn.Module
    size: tuple[int, ...]
    input_gradient: bool


class Work(NamedTuple):
    """What a pass needs at least: bytes moved and flops."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Ceiling:
    """What the card does in one precision: of a copy GB/s, read and written together; of a matrix product TFLOP/s."""

    precision: str
    bandwidth: float
    compute: float


@dataclass(frozen=True)
class Row:
    """Milliseconds of either, torch's ÷ ours, and what ours attains; `of_copy` and `of_matmul` are parts of 1."""

    layer: str
    precision: str
    format: str
    operation: str
    ours: float
    torchs: float
    ratio: float
    bandwidth: float
    of_copy: float
    compute: float
    of_matmul: float

    @property
    def slower(self) -> bool:
        return self.ratio < 1


def median(run: Run) -> float:
    result = triton.testing.do_bench(run, return_mode="median")
    assert isinstance(result, float)
    return result


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may be rounded to TF32."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = allowed
        yield
    finally:
        for flag, value in zip(flags, before):
            flag.allow_tf32 = value


def ceiling(precision: str, device: torch.device, timer: Timer, copied: int, rows: int) -> Ceiling:
    dtype, allowed = PRECISIONS[precision]
    source = torch.empty(copied // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / timer(lambda: target.copy_(source)) / 1e6
    a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    with tf32(allowed):
        compute = 2 * rows**3 / timer(lambda: a @ b) / 1e9
    return Ceiling(precision, bandwidth, compute)


def cases(only: str) -> Iterator[Case]:
    """The layers, and convolution, ReLU and max pooling fused against one after the other."""
    for layer in LAYERS:
        if only in layer.name:
            yield _case(layer, layer.build(torchconv.nn), layer.build(torch.nn))
    for layer in BLOCKS:
        if only in layer.name:
            ours, torchs = (
                torch.nn.Sequential(layer.build(torch.nn), torch.nn.ReLU(), torch.nn.MaxPool2d(2)) for _ in range(2)
            )
            torchconv.fuse(ours)
            yield _case(layer, ours, torchs)


def _case(layer: Layer, ours: torch.nn.Module, torchs: torch.nn.Module) -> Case:
    return Case(layer.name, ours, torchs, layer.size, layer.input_gradient)


def work(case: Case, x: Tensor, y: Tensor) -> dict[str, Work]:
    """What the passes need: operands and results once, and of a convolution two flops for each product.

    `torchs` tells the layer's parts, of which the intermediate results need not exist.
    """
    weights, parameters, flops = 0, sum(p.nbytes for p in case.torchs.parameters()), 0
    for module in case.torchs.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            weight, weights = module.weight.shape, weights + module.weight.nbytes
            geometry = ConvGeometry.of_conv(
                x.shape, weight, module.stride, module.padding, module.dilation, module.groups
            )
            flops += 2 * x.shape[0] * math.prod(geometry.output) * math.prod(weight)
    # Of x and y's gradient the parameters'; of the weights and y's gradient that of x.  Pooling does not read x again.
    backward = y.nbytes + (x.nbytes + parameters if flops else 0) + (weights + x.nbytes) * case.input_gradient
    return {
        "forward": Work(x.nbytes + parameters + y.nbytes, flops),
        "backward": Work(backward, (1 + case.input_gradient) * flops),
    }


def runs(module: torch.nn.Module, x: Tensor, input_gradient: bool) -> tuple[dict[str, Run], Tensor]:
    """A module's forward pass as in training, and its backward pass alone; and the result."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(input_gradient)
    y = module(leaf)
    asked, g = [*module.parameters(), *([leaf] if input_gradient else [])], torch.randn_like(y)
    backward = lambda: torch.autograd.grad(y, asked, g, retain_graph=True)  # noqa: E731
    return {"forward": lambda: module(leaf), "backward": backward}, y


def measured(case: Case, limit: Ceiling, format: str, device: torch.device, timer: Timer) -> Iterator[Row]:
    """The forward and the backward pass of one layer in one precision and memory format."""
    dtype, allowed = PRECISIONS[limit.precision]
    layouts = {"NCHW": (torch.contiguous_format,) * 2, "NHWC": (torch.channels_last, torch.channels_last_3d)}
    layout = layouts[format][len(case.size) - 4]
    x = torch.randn(case.size, device=device).to(dtype, memory_format=layout)
    with tf32(allowed):
        sides = []
        for module in (case.ours, case.torchs):
            module.to(device, dtype)
            module.to(memory_format=layout)
            sides.append(runs(module, x, case.input_gradient))
        (ours, y), (torchs, _) = sides
        needs = work(case, x, y)
        for operation in ("forward", "backward"):
            mine, theirs, need = timer(ours[operation]), timer(torchs[operation]), needs[operation]
            bandwidth, compute = need.bytes / mine / 1e6, need.flops / mine / 1e9
            attained = (bandwidth, bandwidth / limit.bandwidth, compute, compute / limit.compute)
            yield Row(case.name, limit.precision, format, operation, mine, theirs, theirs / mine, *attained)


def versions(device: torch.device) -> dict[str, str]:
    """What the figures belong to: device, driver, torch and Triton."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0] or driver
    toolkit = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return {
        "device": name,
        "driver": driver,
        "toolkit": toolkit,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def ceiling_table(found: Iterable[Ceiling]) -> str:
    return tables.markdown(
        ("precision", "copy GB/s", "matmul TFLOP/s"), [(c.precision, round(c.bandwidth), c.compute) for c in found]
    )


def table(found: list[Row]) -> str:
    columns = (
        "layer", "precision", "format", "pass", "ours ms", "torch ms", "torch ÷ ours", "", "GB/s", "of copy", "TFLOP/s",
        "of matmul",
    )  # fmt: skip
    lines = []
    for row in found:
        times = (f"{row.ours:.4f}", f"{row.torchs:.4f}", row.ratio, "<" if row.slower else "")
        compute = (row.compute, f"{row.of_matmul:.0%}") if row.compute else (None, None)
        attained = (round(row.bandwidth), f"{row.of_copy:.0%}", *compute)
        lines.append((row.layer, row.precision, row.format, row.operation, *times, *attained))
    return tables.markdown(columns, lines)


def main(
    arguments: list[str] | None = None,
    device: torch.device | None = None,
    timer: Timer = median,
    copied: int = COPIED,
    rows: int = ROWS,
) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only layers whose name holds this")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    if device is None:
        if not torch.cuda.is_available():
            parser.exit(2, "benchmarks.gpu: torch finds no GPU here (torch.cuda.is_available() is False)\n")
        device = torch.device("cuda", torch.cuda.current_device())
    described = versions(device)
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    limits = [ceiling(precision, device, timer, copied, rows) for precision in options.precisions]
    print(ceiling_table(limits), flush=True)
    found = [
        row
        for case in cases(options.only)
        for limit in limits
        for format in ("NCHW", "NHWC")
        for row in measured(case, limit, format, device, timer)
    ]
    print(table(found))
    print(f"Ours is slower in {sum(row.slower for row in found)} of {len(found)} rows.")
    if options.json:
        figures = {"versions": described, "ceilings": [asdict(c) for c in limits], "rows": [asdict(r) for r in found]}
        tables.save(options.json, figures)


if __name__ == "__main__":
    main()
