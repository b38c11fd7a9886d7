"""What the kernels multiply and move, beside what they must: useful ÷ issued flops, bytes ÷ compulsory bytes.

    python -m benchmarks.traffic                                   every layer, in float16 and both memory formats
    python -m benchmarks.traffic --only lenet --dtypes float32 --programs 24 --json traffic.json

Counted, not timed: in Triton's interpreter, from the accesses and products that each program asks for.  Large launches
are counted by a sample of their programs (`benchmarks.counters.sample`), on tensors without data; the whole table takes
some minutes.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import triton_kernels
from benchmarks import tables
from benchmarks.counters import SECTOR, Count, counted
from benchmarks.layers import BLOCKS, LAYERS, Layer
from torchconv.geometry import BlockGeometry, ConvGeometry, PoolGeometry, extended

FORMATS = ("NCHW", "NHWC")
# From so many channels on both sides, a product is to waste next to nothing.
CHANNELS = 16
# Part of the bytes of convolution, ReLU and pooling that the fused block is to move: it writes none of the intermediate
# tensors, so what programs share through the L2 cache is left out on both sides.
FUSED = 0.35
HEADER = """\
Counted from what the kernels ask for, in Triton's interpreter; no cache is simulated and nothing is timed.
useful   flops that the layer needs ÷ flops of the tile products issued
asked    bytes that all loads and stores ask for ÷ compulsory bytes
access   32-byte sectors of each load and store by itself ÷ compulsory bytes: nothing stays in a cache
program  distinct sectors of each program ÷ compulsory bytes: a program's own repeated accesses stay in its cache
once     every tensor of every launch moved once ÷ compulsory bytes: all that programs share stays in the L2 cache
Compulsory bytes: what the operation takes and gives, each element once.  The aim is on `useful` for products, and on
`program` for pooling and depthwise convolution.
"""


class Pass(NamedTuple):
    """A forward or backward pass of a layer: what it takes, the call that launches its kernels, the flops it needs."""

    name: str
    inputs: tuple[Tensor, ...]
    run: Callable[[], Any]
    flops: int = 0


@dataclass(frozen=True)
class Figures:
    """The columns of the table; see HEADER.  `useful` is None for kernels that multiply no tiles."""

    launches: int
    useful: float | None
    asked: float
    access: float
    program: float
    once: float
    compulsory: int


@dataclass(frozen=True)
class Row:
    """One pass of a layer; `aim` is (column, bound, met), None where there is none."""

    layer: str
    dtype: str
    format: str
    operation: str
    figures: Figures
    aim: tuple[str, float, bool] | None


@dataclass(frozen=True)
class Fused:
    """Bytes of a training step of convolution, ReLU and max pooling: the fused block's by those of the three."""

    layer: str
    dtype: str
    format: str
    program: float
    once: float


class Maker(NamedTuple):
    """Makes tensors without data in a type and memory format; no kernel's accesses depend on the values."""

    dtype: torch.dtype
    format: str

    def memory_format(self, rank: int) -> torch.memory_format:
        if self.format == "NCHW":
            return torch.contiguous_format
        return torch.channels_last if rank == 2 else torch.channels_last_3d

    def __call__(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        memory_format = self.memory_format(len(size) - 2) if len(size) > 3 else torch.contiguous_format
        return torch.empty(size, dtype=dtype or self.dtype, device="meta", memory_format=memory_format)


def conv_geometry(layer: Layer, conv: Any) -> ConvGeometry:
    return ConvGeometry.of_conv(
        layer.size, conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    )


def conv_passes(layer: Layer, conv: Any, make: Maker) -> list[Pass]:
    geometry = conv_geometry(layer, conv)
    x, w, bias = make(*layer.size), make(*conv.weight.shape), make(conv.out_channels)
    g = make(x.shape[0], w.shape[0], *geometry.output)
    # Each element of the result is a sum of so many products; taps that lie in the padding are among them.
    flops = 2 * g.numel() * math.prod(w.shape[1:])
    format = make.memory_format(geometry.rank)
    return [
        Pass("forward", (x, w, bias), lambda: triton_kernels.conv_fprop(x, w, bias, geometry, format), flops),
        Pass("dgrad", (g, w), lambda: triton_kernels.conv_dgrad(g, w, None, geometry, format), flops),
        Pass("wgrad", (x, g), lambda: triton_kernels.conv_wgrad(x, g, True, geometry, format), flops),
    ]


def pool_passes(geometry: PoolGeometry, size: Sequence[int], make: Maker) -> list[Pass]:
    x, g = make(*size), make(*size[:2], *geometry.output)
    winners, format = make(*g.shape, dtype=torch.uint8), make.memory_format(len(size) - 2)
    return [
        Pass("forward", (x,), lambda: triton_kernels.max_pool(x, geometry, format)),
        Pass("backward", (g, winners), lambda: triton_kernels.max_pool_scatter(g, winners, geometry, format)),
    ]


def block_passes(layer: Layer, conv: Any, make: Maker, pool: tuple[int, ...]) -> list[Pass]:
    """The fused block with windows of `pool`; of the backward passes, those that training asks for."""
    geometry = extended(BlockGeometry, conv_geometry(layer, conv), pool)
    x, w, bias = make(*layer.size), make(*conv.weight.shape), make(conv.out_channels)
    g = make(x.shape[0], w.shape[0], *geometry.pooled)
    winners, format = make(*g.shape, dtype=torch.uint8), make.memory_format(geometry.rank)
    passes = [
        Pass("forward", (x, w, bias), lambda: triton_kernels.block_fprop(x, w, bias, geometry, format)),
        Pass("wgrad", (x, g, winners), lambda: triton_kernels.block_wgrad(x, g, winners, True, geometry, format)),
        Pass("dgrad", (g, winners, w), lambda: triton_kernels.block_dgrad(g, winners, w, geometry, format)),
    ]
    return passes if layer.input_gradient else passes[:2]


def passes_of(layer: Layer, make: Maker) -> list[Pass]:
    module: Any = layer.build(nn)
    if isinstance(module, nn.MaxPool2d):
        arguments = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        return pool_passes(PoolGeometry.of_pool(layer.size, 2, *arguments), layer.size, make)
    return conv_passes(layer, module, make)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def moved(one: Pass, programs: int | None) -> tuple[list[Count], int, int]:
    """Counts of the launches of a pass, its compulsory bytes, and those of every tensor of every launch."""
    with counted(programs) as counts:
        result = one.run()
    results = [result] if isinstance(result, Tensor) else list(result)
    once = sum(traffic.touched.size * traffic.item for count in counts for traffic in count.traffic.values())
    return counts, _bytes((*one.inputs, *results)), once


def figures(one: Pass, programs: int | None = None) -> Figures:
    """Count a pass, by about so many programs of each launch, or by all."""
    counts, compulsory, once = moved(one, programs)
    every = [traffic for count in counts for traffic in count.traffic.values()]
    issued = sum(count.dot_flops for count in counts)
    return Figures(
        launches=len(counts),
        useful=one.flops / issued if issued else None,
        asked=sum(traffic.bytes for traffic in every) / compulsory,
        access=sum(traffic.sectors for traffic in every) * SECTOR / compulsory,
        program=sum(traffic.footprint for traffic in every) * SECTOR / compulsory,
        once=once / compulsory,
        compulsory=compulsory,
    )


def aim_of(layer: Layer, operation: str, found: Figures) -> tuple[str, float, bool] | None:
    """The column that has an aim, the aim, and whether it is met; None for a pass that training does not ask for."""
    if found.useful is None:
        return "program", 1.1, found.program <= 1.1
    if operation == "dgrad" and not layer.input_gradient:
        return None
    conv: Any = layer.build(nn)
    least = 0.85 if min(conv.in_channels, conv.out_channels) >= CHANNELS else 0.6
    return "useful", least, found.useful >= least


def rows(layers: Iterable[Layer], dtypes: Iterable[str], programs: int | None) -> Iterator[Row]:
    for layer in layers:
        for dtype in dtypes:
            for format in FORMATS:
                for one in passes_of(layer, Maker(getattr(torch, dtype), format)):
                    found = figures(one, programs)
                    yield Row(layer.name, dtype, format, one.name, found, aim_of(layer, one.name, found))


def fused(layer: Layer, dtype: str, format: str, programs: int | None, window: int = 2) -> Fused:
    """The fused block against its three parts, forward and backward."""
    make, conv = Maker(getattr(torch, dtype), format), layer.build(nn)
    y = make(layer.size[0], conv.out_channels, *conv_geometry(layer, conv).output)  # type: ignore[arg-type]
    parts = [one for one in conv_passes(layer, conv, make) if layer.input_gradient or one.name != "dgrad"]
    parts += pool_passes(PoolGeometry.of_pool(y.shape, 2, window, window, 0, 1, False), y.shape, make)
    # ReLU is torch's: forward it reads y and writes, backward it reads y and the gradient and writes.
    relu = 5 * y.nbytes

    def total(passes: list[Pass]) -> tuple[int, int]:
        program = whole = 0
        for one in passes:
            counts, _, once = moved(one, programs)
            program += SECTOR * sum(t.footprint for count in counts for t in count.traffic.values())
            whole += once
        return program, whole

    block, three = total(block_passes(layer, conv, make, (window, window))), total(parts)
    return Fused(layer.name, dtype, format, block[0] / (three[0] + relu), block[1] / (three[1] + relu))


def table(found: list[Row]) -> str:
    columns = (
        "layer",
        "type",
        "format",
        "pass",
        "launches",
        "useful",
        "asked",
        "access",
        "program",
        "once",
        "MB",
        "aim",
    )
    lines = []
    for row in found:
        f, aim = row.figures, ""
        if row.aim:
            column, bound, met = row.aim
            aim = f"{column} {'≥' if column == 'useful' else '≤'} {bound}: {_met(met)}"
        cells = (f.launches, f.useful, f.asked, f.access, f.program, f.once, f.compulsory / 1e6, aim)
        lines.append((row.layer, row.dtype, row.format, row.operation, *cells))
    return tables.markdown(columns, lines)


def fused_table(found: list[Fused]) -> str:
    columns = ("block ÷ conv, ReLU, pool", "type", "format", "program", "once", "aim")
    lines = [
        (row.layer, row.dtype, row.format, row.program, row.once, f"once ≤ {FUSED}: {_met(row.once <= FUSED)}")
        for row in found
    ]
    return tables.markdown(columns, lines)


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only layers whose name holds this")
    parser.add_argument("--dtypes", nargs="+", default=["float16"], metavar="TYPE", help="default: float16")
    parser.add_argument("--programs", type=int, default=12, help="of each launch to count (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    layers = [layer for layer in LAYERS if options.only in layer.name]
    blocks = [layer for layer in BLOCKS if options.only in layer.name]
    found = list(rows(layers, options.dtypes, options.programs))
    against = [
        fused(b, dtype, format, options.programs) for b in blocks for dtype in options.dtypes for format in FORMATS
    ]
    print(HEADER)
    if found:
        print(table(found), end="\n\n")
    if against:
        print(fused_table(against))
    if options.json:
        tables.save(options.json, {"rows": [asdict(row) for row in found], "fused": [asdict(row) for row in against]})


if __name__ == "__main__":
    main()
