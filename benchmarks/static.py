"""What compiled code tells without a GPU: registers, spills, shared memory, matrix instructions, access widths.

    python -m benchmarks.static                              a table for every target, data type and kernel
    python -m benchmarks.static --targets sm_90 --dtypes float16 --json figures.json
    python -m benchmarks.static --every-tile                 the product kernels in every tile, whatever the layer gets

These figures do not depend on the machine.  They are not times: nothing here knows occupancy, latencies or caches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

import triton_kernels
from benchmarks import tables
from benchmarks.offline import TARGETS, Compiled, compiling_for
from torchconv.geometry import AvgGeometry, ConvGeometry, PoolGeometry, extended
from triton_kernels import configs
from triton_kernels.launch import dot_precision


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a kernel takes, which its binary's header tells.

    Attributes:
        registers: per thread.
        stack: bytes per thread of memory that the compiler spills registers to, or keeps arrays in.
        shared: bytes of shared memory per block.
        matrix: the matrix instruction in use, or "".
    """

    registers: int
    stack: int
    shared: int
    matrix: str


@dataclasses.dataclass(frozen=True)
class Figures(Resources):
    """All that is read off a kernel's code.

    Attributes:
        body: instructions of the main loop: the innermost one that multiplies, else the longest; of the whole kernel,
            if it has no such loop (the compiler unrolls short ones).
        body_matrix: matrix instructions among them.
        load_bits, store_bits: width of the widest access to global memory per thread.
    """

    body: int
    body_matrix: int
    load_bits: int
    store_bits: int


class Instruction(NamedTuple):
    opcode: str
    operands: str


def resources(kernel: Any) -> Resources:
    """Resources of a CompiledKernel for an NVIDIA or AMD target; takes milliseconds."""
    return _nvidia_resources(kernel) if "cubin" in kernel.asm else _amd_resources(kernel)


def figures(kernel: Any) -> Figures:
    """Figures of a CompiledKernel for an NVIDIA or AMD target; disassembling takes a few tenths of a second."""
    return _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)


def access_bits(kernel: Any) -> tuple[set[int], set[int]]:
    """The widths of all loads from global memory and of all stores to it, in bits per thread."""
    if "cubin" in kernel.asm:
        code = _nvidia_code(kernel)
        return _nvidia_bits(code, r"LDG|UBLKCP|UTMALDG"), _nvidia_bits(code, "STG")
    code = _amd_code(kernel)
    return _amd_bits(code, "load"), _amd_bits(code, "store")


# NVIDIA: SASS, from the disassemblers that come with Triton ----------------------------------------------------------

_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*?);")
_SASS_LABEL = re.compile(r"^(\.L_x_\d+):")
_SASS_MATRIX = re.compile(r"HGMMA|HMMA|DMMA|IMMA|UTC\w*MMA")


def _nvidia_resources(kernel: Any) -> Resources:
    usage = _inspect(kernel, triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    matrix = re.search(r"(wgmma\.mma_async|tcgen05\.mma|mma)\.\S*(\.m\d+n\d+k\d+|kind)\S*", kernel.asm["ptx"])
    return Resources(used["REG"], used["STACK"] + used["LOCAL"], kernel.metadata.shared, matrix[0] if matrix else "")


def _nvidia(kernel: Any) -> Figures:
    code = _nvidia_code(kernel)
    body = _main_body(code, re.compile(r"BRA"), re.compile(r"`\((\.L_x_\d+)\)"), _SASS_MATRIX)
    instructions = [i for i in code if isinstance(i, Instruction)]
    taken = dataclasses.asdict(_nvidia_resources(kernel)) | {"matrix": _commonest_matrix(instructions, _SASS_MATRIX)}
    return Figures(
        **taken,
        body=len(body),
        body_matrix=sum(bool(_SASS_MATRIX.match(i.opcode)) for i in body),
        load_bits=max(_nvidia_bits(code, r"LDG|UBLKCP|UTMALDG"), default=0),
        store_bits=max(_nvidia_bits(code, "STG"), default=0),
    )


def _nvidia_code(kernel: Any) -> list[Instruction | str]:
    listing = _inspect(kernel, triton.knobs.nvidia.nvdisasm.path, "-c")
    return _parse(listing.splitlines(), _SASS_LABEL, _SASS)


def _inspect(kernel: Any, *command: str) -> str:
    """Output of one of the programs that come with Triton, given the kernel's binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def _nvidia_bits(code: Iterable[Instruction | str], kind: str) -> set[int]:
    """Bits of accesses such as LDG.E.U8, STG.E, LDGSTS.E.BYPASS.128."""

    def bits(opcode: str) -> int:
        parts = opcode.split(".")[1:]
        sizes = [int(p.lstrip("US")) for p in parts if re.fullmatch(r"[US]?(8|16|64|128|256)", p)]
        return max(sizes, default=32)

    return {
        bits(i.opcode)
        for i in code
        if isinstance(i, Instruction) and re.match(kind, i.opcode) and i.opcode != "LDGDEPBAR"  # which waits for loads
    }


# AMD: the assembly that LLVM wrote -----------------------------------------------------------------------------------

_GCN = re.compile(r"^\s+([a-z]\w+)(.*)")
_GCN_LABEL = re.compile(r"^(\.LBB\d+_\d+):")
_GCN_MATRIX = re.compile(r"v_mfma|v_wmma")
_GCN_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "byte": 8}


def _amd_resources(kernel: Any) -> Resources:
    text = kernel.asm["amdgcn"]
    used = {
        name: int(number) for name, number in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text)
    }
    matrix = re.search(r"v_(?:mfma|wmma)_\w+", text)
    stack = used["private_segment_fixed_size"]
    return Resources(used["vgpr_count"], stack, kernel.metadata.shared, matrix[0] if matrix else "")


def _amd(kernel: Any) -> Figures:
    code = _amd_code(kernel)
    body = _main_body(code, re.compile(r"s_c?branch"), re.compile(r"(\.LBB\d+_\d+)"), _GCN_MATRIX)
    return Figures(
        **dataclasses.asdict(_amd_resources(kernel)),
        body=len(body),
        body_matrix=sum(bool(_GCN_MATRIX.match(i.opcode)) for i in body),
        load_bits=max(_amd_bits(code, "load"), default=0),
        store_bits=max(_amd_bits(code, "store"), default=0),
    )


def _amd_code(kernel: Any) -> list[Instruction | str]:
    return _parse(kernel.asm["amdgcn"].splitlines(), _GCN_LABEL, _GCN)


def _amd_bits(code: Iterable[Instruction | str], kind: str) -> set[int]:
    opcodes = [i.opcode for i in code if isinstance(i, Instruction)]
    accesses = [o for o in opcodes if re.match(rf"(global|buffer|flat)_{kind}", o)]
    return {next(bits for name, bits in _GCN_BITS.items() if name in o) for o in accesses}


# Either --------------------------------------------------------------------------------------------------------------


def _parse(lines: Iterable[str], label: re.Pattern[str], instruction: re.Pattern[str]) -> list[Instruction | str]:
    """Instructions, and labels as strings, in order."""
    code: list[Instruction | str] = []
    for line in lines:
        if match := label.match(line):
            code.append(match[1])
        elif match := instruction.match(line):
            code.append(Instruction(match[1], match[2]))
    return code


def _main_body(
    code: Sequence[Instruction | str], branch: re.Pattern[str], to: re.Pattern[str], matrix: re.Pattern[str]
) -> list[Instruction]:
    """The main loop or, if no loop multiplies and the kernel does, all of the kernel: see `Figures`."""
    everything = [i for i in code if isinstance(i, Instruction)]
    place = {label: i for i, label in enumerate(code) if isinstance(label, str)}
    loops = []
    for i, item in enumerate(code):
        if isinstance(item, Instruction) and branch.match(item.opcode):
            target = to.search(item.operands)
            if target and place.get(target[1], i) < i - 1:  # a branch to itself ends a kernel
                loops.append([x for x in code[place[target[1]] : i + 1] if isinstance(x, Instruction)])
    if any(matrix.match(i.opcode) for i in everything):
        return min((loop for loop in loops if any(matrix.match(i.opcode) for i in loop)), key=len, default=everything)
    return max(loops, key=len, default=everything)


def _commonest_matrix(instructions: Iterable[Instruction], matrix: re.Pattern[str]) -> str:
    found = [i.opcode for i in instructions if matrix.match(i.opcode)]
    return max(sorted(set(found)), key=found.count, default="")


# The command ---------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A convolution and the pooling after it: [batch, channels, size, size] with a square kernel."""

    name: str
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int
    padding: int


LAYERS = (
    Layer("LeNet conv1", 1, 6, 28, 5, 1, 2),
    Layer("LeNet conv2", 6, 16, 14, 5, 1, 0),
    Layer("ResNet stem", 3, 64, 224, 7, 2, 3),
    Layer("ResNet 3x3", 64, 64, 56, 3, 1, 1),
    Layer("ResNet 3x3/2", 128, 128, 56, 3, 2, 1),
)


def run_layer(layer: Layer, dtype: torch.dtype, memory_format: torch.memory_format, every_tile: bool = False) -> None:
    """Launch every kernel that training `layer` and a 2×2 pooling after it would, on tensors without data.

    With `every_tile`, the kernels that multiply tiles alone, in all that they can be launched with.
    """

    def tensor(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)

    x = tensor(128, layer.channels, layer.size, layer.size)
    w = tensor(layer.outputs, layer.channels, layer.kernel, layer.kernel)
    conv = ConvGeometry.of_conv(x.shape, w.shape, layer.stride, layer.padding, 1, 1)
    y, bias = tensor(x.shape[0], w.shape[0], *conv.output), tensor(1, layer.outputs, 1, 1).flatten()
    for table, launch in (
        (configs.PRODUCT_TILES, lambda: triton_kernels.conv_fprop(x, w, bias, conv, memory_format)),
        (configs.PRODUCT_TILES, lambda: triton_kernels.conv_dgrad(y, w, None, conv, memory_format)),
        (configs.GRADIENT_TILES, lambda: triton_kernels.conv_wgrad(x, y, True, conv, memory_format)),
    ):
        for tile in configs.tiles_for(table, dtype, dot_precision(x)) if every_tile else (None,):
            with configs.forced(tile) if tile else contextlib.nullcontext():
                launch()
    if every_tile:
        return
    pool = PoolGeometry.of_pool(y.shape, 2, 2, 2, 0, 1, False)
    pooled, offset = triton_kernels.max_pool(y, pool, memory_format)
    triton_kernels.max_pool_scatter(pooled, offset, pool, memory_format)
    average = extended(AvgGeometry, pool, True, 0)
    triton_kernels.avg_pool(y, average, memory_format)
    triton_kernels.avg_pool_grad(pooled, average, memory_format)


def rows(
    targets: Sequence[str], dtypes: Sequence[str], layers: Sequence[Layer], every_tile: bool = False
) -> Iterator[dict[str, Any]]:
    """One row of figures per target, layer, data type, memory format and kernel."""
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    for target in targets:
        for layer in layers:
            for dtype in dtypes:
                for format_name, memory_format in formats.items():
                    with compiling_for(target) as kernels:
                        run_layer(layer, getattr(torch, dtype), memory_format, every_tile)
                    labels = {"target": target, "layer": layer.name, "dtype": dtype, "format": format_name}
                    yield from ({**labels, **_row(compiled)} for compiled in kernels)


def _row(compiled: Compiled) -> dict[str, Any]:
    constants = compiled.constants
    tile = "x".join(str(constants[n]) for n in ("BM", "BN", "BK", "BLOCK") if n in constants)
    return {"kernel": compiled.name, "tile": tile, **dataclasses.asdict(figures(compiled.kernel))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"])
    parser.add_argument("--layers", nargs="+", default=[layer.name for layer in LAYERS])
    parser.add_argument(
        "--every-tile", action="store_true", help="all tiles of the products, not the one of each layer"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    layers = [layer for layer in LAYERS if layer.name in arguments.layers]
    table = []
    for row in rows(arguments.targets, arguments.dtypes, layers, arguments.every_tile):
        if not table:
            print(" ".join(_cell(name, name) for name in row))
        table.append(row)
        print(" ".join(_cell(name, value) for name, value in row.items()), flush=True)
    if arguments.json:
        tables.save(arguments.json, table)


_WIDTHS = {"layer": 13, "dtype": 8, "kernel": 24, "tile": 10, "matrix": 28, "target": 7}


def _cell(name: str, value: Any) -> str:
    width = _WIDTHS.get(name, len(name))
    return f"{value:{'<' if name in _WIDTHS or name == 'format' else '>'}{width}}"


if __name__ == "__main__":
    main()
