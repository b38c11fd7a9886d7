"""Compile every kernel for one GPU, in types and tiles that it can be launched with, and print what came of it as JSON.

    python tests/kernels/aot.py sm_90 conv            or: block, pool

A program of its own because a process either compiles kernels or interprets them; `test_compile.py` reads its output.
The launchers run as they are, on tensors without data.

A case takes half a second to a second and a half.  So every tile of every type is compiled for one GPU, with one of two
kinds of operands, and every branch in two types; the other GPUs share the branches and the tiles out, of either kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from launches import BLOCK, CONV, DTYPES, TF32, Conv, dot_precision, dtype_of, short, tiles_of
from torch import Tensor

import triton_kernels
from benchmarks.offline import compiling_for
from benchmarks.static import access_bits, resources
from torchconv.geometry import AvgGeometry, FractionalGeometry, PoolGeometry, extended
from triton_kernels import configs

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FAMILIES = {"conv": CONV, "block": BLOCK, "pool": ()}
GPUS = ("sm_90", "sm_80", "sm_100", "gfx942")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Case(NamedTuple):
    """One launch: a name for messages, the type that is multiplied or moved, and the call."""

    name: str
    dtype: str
    launch: Callable[[], Any]


def chosen(target: str, number: int, period: int) -> bool:
    """Whether this GPU compiles the case of that number: one in so many, and others than the GPU before it."""
    return (number + GPUS.index(target)) % period == 0


def shared(target: str, kind: torch.dtype | str) -> int:
    """The period of the cases of a type: the first GPU compiles all, but of types whose code is like another's."""
    return (1 if target == GPUS[0] else len(GPUS) - 1) * (2 if kind in (torch.bfloat16, TF32) else 1)


def conv_cases(target: str, names: Sequence[str]) -> Iterator[Case]:
    precisions: list[torch.dtype | str] = [*DTYPES, *([TF32] if target.startswith("sm") else [])]
    with compiling_for(target):  # not every GPU takes every tile
        tiles = {(name, kind): tiles_of(name, kind) for name in names for kind in precisions}
    for kind in precisions:
        for name in names:
            period = 2 if target == GPUS[0] else shared(target, kind) * (2 if name in BLOCK else 1)
            for i, tile in enumerate(tiles[name, kind]):
                # The result's channels are as many as the tile has room for, the others few or many.
                if chosen(target, i, period):
                    few = (tile.n, 3) if name.endswith("dgrad") else (3, tile.n)
                    conv = Conv(64, *few, (28, 28), (5, 5), padding=2)
                    yield conv_case(name, kind, conv, "contiguous", tile, bias=True)
                if chosen(target, i + 1, period):
                    conv = Conv(64, 64, 64, (28, 28), (3, 3), padding=1)
                    yield conv_case(name, kind, conv, "channels_last", tile)
            depthwise = Conv(64, 64, 64, (28, 28), (3, 3), padding=1, groups=64)
            formats = (("channels_last", depthwise), ("contiguous", depthwise._replace(size=(29, 31))))
            for i, (format, conv) in enumerate(formats):
                if kind != TF32 and chosen(target, i, shared(target, kind)):
                    yield conv_case(name, kind, conv, format, bias=i == 0, note="depthwise")
                big_too = kind in (torch.float16, torch.float64) and name in CONV
                if big_too and chosen(target, i + 1, shared(target, kind)):
                    big = depthwise._replace(batch=40000, size=(32, 32))  # more than 2^31 elements
                    yield conv_case(name, kind, big, format, note="depthwise")
            if kind is not torch.bfloat16:
                # More than 2^31 elements, in the format whose addresses take more registers.
                yield conv_case(name, kind, Conv(40000, 64, 64, (32, 32), (3, 3), padding=1), "contiguous")
    for dtype in (torch.float16, torch.float32):
        for name in names:
            yield conv_case(name, dtype, Conv(64, 6, 16, (14, 14), (5, 5)), "contiguous", bias=True, note="LeNet")
            if name in CONV and dtype == torch.float16:
                yield from branch_cases(target, name, tiles[name, dtype][-1])


def branch_cases(target: str, name: str, largest: configs.Tile) -> Iterator[Case]:
    """What the branches of a product's kernels are for."""
    branches = {
        "1d": Conv(64, 32, 32, (100,), (3,), padding=1),
        "1 wide": Conv(64, 32, 32, (28, 1), (3, 1), padding=(1, 0)),
        "1x1 result": Conv(64, 32, 32, (3, 3), (3, 3)),
        "3d": Conv(8, 32, 32, (16, 16, 16), (3, 3, 3), padding=1),
        "strided": Conv(64, 32, 32, (33, 33), (3, 3), stride=2, padding=1),
        "strided_and_dilated": Conv(64, 3, 7, (33, 35), (3, 5), stride=(2, 6), padding=3, dilation=(3, 4)),
        "grouped": Conv(64, 64, 64, (28, 28), (3, 3), padding=1, groups=4),
        "reflect": Conv(64, 32, 32, (28, 28), (3, 3), padding=1, padding_mode="reflect"),
        "replicate": Conv(64, 32, 32, (28, 28), (3, 3), padding=1, padding_mode="replicate"),
        "circular": Conv(64, 3, 7, (28, 28), (5, 5), padding=2, padding_mode="circular"),
        "odd_channels": Conv(64, 37, 53, (29, 31), (3, 3), padding=1),
        "depthwise_many_taps": Conv(64, 32, 32, (28, 28), (5, 5), padding=2, groups=32),
        "depthwise_multiplied": Conv(64, 32, 64, (29, 31), (3, 3), stride=2, padding=1, groups=32),
        "depthwise_3d": Conv(8, 32, 32, (16, 16, 16), (3, 3, 3), padding=1, groups=32),
    }
    # The largest tile where three dimensions take registers, in the format that loads element by element.
    deep = Conv(8, 64, 128, (16, 16, 16), (3, 3, 3), padding=1)
    yield conv_case(name, torch.float16, deep, "contiguous", largest, bias=True)
    for i, (branch, conv) in enumerate(branches.items()):
        for j, dtype in enumerate((torch.float16, torch.float64)):
            if chosen(target, i + j, shared(target, dtype)) and (conv.padding_mode == "zeros" or name != "conv_dgrad"):
                yield conv_case(name, dtype, conv, "contiguous" if branch == "1d" else "channels_last", note=branch)


def conv_case(
    name: str,
    kind: torch.dtype | str,
    conv: Conv,
    format: str,
    tile: configs.Tile | None = None,
    bias: bool = False,
    note: str = "",
) -> Case:
    dtype = dtype_of(kind)

    def launch() -> None:
        x, w, g = conv.operands(dtype, "meta")
        b = torch.empty(max(conv.channels, conv.outputs), dtype=dtype, device="meta") if bias else None
        with dot_precision(kind), configs.forced(tile) if tile else contextlib.nullcontext():
            memory_format = conv.memory_format(format == "channels_last")
            if name in CONV:
                conv.launch(name, x, w, g, b, memory_format)
            else:
                launch_block(name, conv, x, w, None if b is None else b[: conv.outputs], memory_format)

    label = f"{name} {note or shown(conv)} {format} {tile or ''}"
    return Case(label, short(kind), launch)


def launch_block(
    name: str, conv: Conv, x: Tensor, w: Tensor, bias: Tensor | None, memory_format: torch.memory_format
) -> None:
    geometry = conv.block((2,) * len(conv.size))
    g = torch.empty(conv.batch, conv.outputs, *geometry.pooled, dtype=x.dtype, device="meta")
    winner = g.to(torch.uint8)
    if name == "block_fprop":
        triton_kernels.block_fprop(x, w, bias, geometry, memory_format)
    elif name == "block_dgrad":
        triton_kernels.block_dgrad(g, winner, w, geometry, memory_format)
    else:
        triton_kernels.block_wgrad(x, g, winner, bias is not None, geometry, memory_format)


def shown(conv: Conv) -> str:
    sizes = (conv.batch, conv.channels, *conv.size)
    return f"x[{', '.join(map(str, sizes))}] {conv.outputs} outputs"


def pool_cases(target: str) -> Iterator[Case]:
    square = ((64, 64, 32, 32), (2, 2, 2, 0, 1, False))
    overlapping = ((64, 64, 32, 32), (2, 3, 2, 1, 1, False))
    for dtype in DTYPES:
        for i, format in enumerate(FORMATS):
            if chosen(target, i, shared(target, dtype)):
                yield pool_case("2x2", dtype, square, format)
            if chosen(target, i + 1, shared(target, dtype)):
                yield pool_case("3x3", dtype, overlapping, format, include_pad=False)
                if dtype in (torch.float16, torch.float64):
                    yield pool_case("big", dtype, ((40000, 64, 32, 32), overlapping[1]), format, include_pad=False)
    wide_windows = ((4, 8, 60000, 60), (2, (50000, 7)))
    yield pool_case("adaptive, long", torch.float16, wide_windows, "channels_last", include_pad=False)
    for i, dtype in enumerate(INTEGERS):
        if chosen(target, i, shared(target, dtype)):
            yield pool_case("integer", dtype, overlapping, "channels_last", include_pad=False)
        if chosen(target, i + 1, shared(target, dtype)):
            yield pool_case("integer, divisor", dtype, overlapping, "contiguous", divisor=3)
    branches: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "1d": (((64, 64, 200), (1, 3, 2, 1, 1, False)), "contiguous", {"include_pad": False}),
        "3d": (((8, 16, 16, 16, 16), (3, 3, 2, 1, 1, True)), "contiguous", {"include_pad": False}),
        "adaptive": (((64, 64, 32, 31), (2, (7, 35))), "channels_last", {"include_pad": False}),
        "289 taps": (((8, 16, 40, 40), (2, 17, 3, 8, 1, False)), "channels_last", {}),
        "dilated": (((8, 16, 40, 40), (2, 3, 2, 1, 2, False)), "channels_last", {"divisor": -5}),
    }
    for i, (branch, (pool, format, options)) in enumerate(branches.items()):
        for j, dtype in enumerate((torch.float16, torch.float64)):
            if chosen(target, i + j, shared(target, dtype)):
                yield pool_case(branch, dtype, pool, format, **options)


def pool_case(
    note: str,
    dtype: torch.dtype,
    pool: tuple[tuple[int, ...], tuple[Any, ...]],
    format: str,
    include_pad: bool = True,
    divisor: int = 0,
) -> Case:
    shape, arguments = pool

    def launch() -> None:
        of = PoolGeometry.of_adaptive if len(arguments) == 2 else PoolGeometry.of_pool
        geometry = of(shape, *arguments)
        launch_pools(shape, dtype, geometry, FORMATS[format], include_pad, divisor)

    return Case(f"pool {note} {format}", short(dtype), launch)


def launch_pools(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    geometry: PoolGeometry,
    memory_format: torch.memory_format,
    include_pad: bool,
    divisor: int,
) -> None:
    average = extended(AvgGeometry, geometry, include_pad, divisor)
    x = torch.empty(shape, dtype=dtype, device="meta")
    y, offset = triton_kernels.max_pool(x, geometry, memory_format)
    triton_kernels.max_pool_gather(x, offset, geometry, memory_format)
    triton_kernels.avg_pool(x, average, memory_format)
    if dtype.is_floating_point:
        triton_kernels.max_pool_scatter(y, offset, geometry, memory_format)
        triton_kernels.avg_pool_grad(y, average, memory_format)
        starts = torch.empty(*shape[:2], sum(geometry.output), dtype=torch.int64, device="meta")
        fractional = FractionalGeometry(geometry.input, geometry.output, geometry.kernel)
        triton_kernels.fractional_max_pool(x, starts, fractional, memory_format)


def aligned_cases(names: Sequence[str]) -> Iterator[Case]:
    """Half precision, channels innermost and a multiple of 16, no bias: what 16 bytes of can be moved at a time."""
    for dtype in (torch.float16, torch.bfloat16):
        for name in names:
            yield conv_case(name, dtype, Conv(64, 64, 64, (28, 28), (3, 3), padding=1), "channels_last")
            if dtype is torch.bfloat16:
                continue  # of the same size: one layer is enough to see it
            strided = Conv(64, 64, 128, (28, 28), (3, 3), stride=2, padding=1)
            yield conv_case(name, dtype, strided, "channels_last", note="strided")
            if name != "block_fprop":  # a matrix product of one channel, whatever the groups
                depthwise = Conv(64, 64, 64, (28, 28), (3, 3), padding=1, groups=64)
                yield conv_case(name, dtype, depthwise, "channels_last", note="depthwise")
        if not names:
            yield pool_case("2x2", dtype, ((64, 64, 32, 32), (2, 2, 2, 0, 1, False)), "channels_last")


def accesses(target: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Widths of the loads and stores of each kernel that an aligned case compiles."""
    for case in aligned_cases(names):
        with compiling_for(target) as kernels:
            case.launch()
        for compiled in kernels:
            loads, stores = access_bits(compiled.kernel)
            labels = {"case": case.name, "dtype": case.dtype, "aligned": compiled.name}
            yield {**labels, "loads": sorted(loads), "stores": sorted(stores)}


def results(target: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each kernel that a case compiles, its switches and resources; for a case that fails, the error."""
    seen: set[str] = set()
    for case in conv_cases(target, names) if names else pool_cases(target):
        labels = {"case": case.name, "dtype": case.dtype}
        try:
            with compiling_for(target) as kernels:
                case.launch()
        except Exception as error:  # whatever the compiler throws is a result of this case
            yield {**labels, "error": f"{type(error).__name__}: {error}"}
            continue
        for compiled in kernels:
            if compiled.kernel.hash not in seen:
                seen.add(compiled.kernel.hash)
                switches = {name: value for name, value in compiled.constants.items() if isinstance(value, bool)}
                yield {
                    **labels,
                    "kernel": compiled.name,
                    "switches": switches,
                    **dataclasses.asdict(resources(compiled.kernel)),
                }


if __name__ == "__main__":
    gpu, names = sys.argv[1], FAMILIES[sys.argv[2]]
    for result in itertools.chain(results(gpu, names), accesses(gpu, names)):
        print(json.dumps(result), flush=True)
