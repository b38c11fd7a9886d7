"""The tiles that the convolution kernels can be launched with, and the choice among them.

A tile says how many rows, columns and reduction elements of a kernel's matrix product one program holds, and how many
warps and pipeline stages it runs with.  The choice looks at the shape, the batch rounded to a power of two, and at the
type and what the vendor's matrix instructions are: no timing, so equal layers run equal kernels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    """Rows, columns and reduction depth of a program's product; warps; pipeline stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Tiles of fprop and dgrad, by the type that is multiplied: rows are pixels, columns channels.
PRODUCT_TILES: dict[str, tuple[Tile, ...]] = {
    # Half precision.  Few columns for few channels; 64 rows, whose addresses a flattened reduction has registers for.
    # Tall and wide ones for layers that the matrix instruction bounds: 128 × 128 loads half as much for each product as
    # 64 × 64 does.  Deeper than 64, gfx942 has no shared memory for; 128 × 256 takes all registers of sm_80.
    "half": (
        Tile(64, 8, 32, 4, 3),
        Tile(64, 16, 32, 4, 3),
        Tile(64, 32, 32, 4, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(128, 64, 64, 4, 3),
        Tile(128, 128, 64, 8, 3),
    ),
    # TF32 runs on the same instructions at half the rate, with twice the bytes: half the depth.
    "tf32": (
        Tile(64, 8, 16, 4, 3),
        Tile(64, 16, 16, 4, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(64, 64, 16, 4, 3),
        Tile(128, 64, 32, 4, 3),
        Tile(128, 128, 32, 8, 3),
    ),
    # float32 without TF32: on NVIDIA one multiply-add per instruction on operands in registers, which bound the tile.
    "float32": (Tile(64, 8, 16, 4, 3), Tile(64, 16, 16, 4, 3), Tile(64, 32, 16, 4, 3), Tile(64, 64, 16, 8, 3)),
    # float64: two registers an element, and two stages, for shared memory.  With 8 columns sm_100 unrolls dgrad's loop,
    # where the output is one pixel, until it spills.
    "float64": (Tile(32, 16, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
}

# Rows of the tallest of them.
MOST_ROWS = 128

# Tiles of wgrad: rows are (channel, tap), columns output channels, the reduction pixels, of which there are many.
GRADIENT_TILES: dict[str, tuple[Tile, ...]] = {
    # Few rows and columns for few channels, and deep, so that a step has something to multiply.  From 128 rows on eight
    # warps, and 32 deep: in the contiguous format every element is an address.
    "half": (
        Tile(32, 8, 64, 4, 3),
        Tile(32, 16, 64, 4, 3),
        Tile(32, 32, 64, 4, 3),
        Tile(32, 64, 64, 4, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(128, 64, 32, 8, 3),
        Tile(128, 128, 32, 8, 3),
    ),
    # As above, with twice the bytes.
    "tf32": (
        Tile(32, 8, 32, 4, 3),
        Tile(32, 16, 32, 4, 3),
        Tile(32, 32, 32, 4, 3),
        Tile(64, 64, 16, 4, 3),
        Tile(128, 64, 16, 8, 3),
        Tile(128, 128, 16, 8, 3),
    ),
    # As for fprop.
    "float32": (Tile(32, 8, 16, 4, 3), Tile(32, 16, 16, 4, 3), Tile(32, 32, 16, 4, 3), Tile(64, 64, 16, 8, 3)),
    "float64": (Tile(32, 8, 16, 4, 2), Tile(32, 16, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
}

# Rows of the tallest tile whose reduction may be flattened: more addresses than that do not fit into the registers.
FLAT_ROWS = 64

# Multiply-adds in the time that an element takes to come from the L2 cache: in half precision 2048 to 32 a cycle on
# each of an H100's multiprocessors, in TF32 half of both.
LOAD = 64

# A launch with fewer programs takes as long as this many: one for each of an H100's multiprocessors.
PROGRAMS = 132

# Part of the products that are to be the layer's, and not of the padding of its last tiles.
USEFUL = 0.85

# Elements of the largest tiles that have registers for offsets of 64 bits.
WIDE_PRODUCT, WIDE_GRADIENT = 64 * 32, 32 * 16
ANY = 1 << 30

# How many programs a kernel whose result is small should be split into: two for each multiprocessor.  Part of the
# result's definition (it fixes the order of summation), so it does not follow the device at hand.
SPLIT_PROGRAMS = 264

# Least number of pixels that a split is worth a second pass for.
SPLIT_LENGTH = 512

# What a split's length is a multiple of, so that every tile's depth divides it.
SPLIT_UNIT = 64

# The tile that splits are counted by where the kernel has none of its own: the depthwise one.
SQUARE = Tile(64, 64, 64, 4, 3)

_forced: ContextVar[Tile | None] = ContextVar("triton_kernels_tile", default=None)


def tiles_for(
    table: dict[str, tuple[Tile, ...]], dtype: torch.dtype, precision: str, elements: int = ANY
) -> tuple[Tile, ...]:
    """The tiles of a table that products of `dtype`, multiplied in `precision`, can be launched with, up to a size."""
    half = dtype in (torch.float16, torch.bfloat16)
    kind = "half" if half else "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")
    columns = _least_columns(triton.__version__, torch.version.hip)
    # AMD's warps have 64 lanes: eight would leave some operands less than 16 bytes a lane.
    return _some(table[kind], columns, elements, 4 if torch.version.hip else 8)


def product_tiles(dtype: torch.dtype, precision: str, wide: bool) -> tuple[Tile, ...]:
    """Those of fprop and dgrad; `wide` if offsets take 64 bits."""
    return tiles_for(PRODUCT_TILES, dtype, precision, WIDE_PRODUCT if wide else ANY)


def gradient_tiles(dtype: torch.dtype, precision: str, wide: bool) -> tuple[Tile, ...]:
    """Those of wgrad, likewise."""
    return tiles_for(GRADIENT_TILES, dtype, precision, WIDE_GRADIENT if wide else ANY)


@functools.cache
def _some(tiles: tuple[Tile, ...], columns: int, elements: int, warps: int) -> tuple[Tile, ...]:
    some = (tile for tile in tiles if tile.n >= columns and tile.m * tile.n <= elements)
    return tuple(tile._replace(warps=min(tile.warps, warps)) for tile in some)


@functools.cache
def _least_columns(version: str, hip: str | None) -> int:
    """Columns of the narrowest matrix instruction: 8 on NVIDIA, where Triton has such tiles from 3.3 on."""
    return 16 if hip or tuple(map(int, version.split(".")[:2])) < (3, 3) else 8


def flattened(tile: Tile, channels: int, taps: int) -> bool:
    """Whether a reduction over (channel, tap) walks both as one index, and not tap by tap in blocks of channels.

    It does where that spares an eighth of the steps, for its addresses take more instructions; and with four warps
    alone, for with eight such loops have been compiled wrongly.
    """
    steps = -(-channels * taps // tile.k)
    return tile.m <= FLAT_ROWS and tile.warps <= 4 and 8 * steps <= 7 * taps * -(-channels // tile.k)


def depth(tile: Tile, channels: int, taps: int) -> int:
    """Products that one element of a tile is issued in a reduction over (channel, tap)."""
    blocks = -(-channels * taps // tile.k) if flattened(tile, channels, taps) else taps * -(-channels // tile.k)
    return blocks * tile.k


@functools.lru_cache(1024)
def product_tile(
    tiles: tuple[Tile, ...], samples: int, pixels: int, columns: int, groups: int, channels: int, taps: int
) -> Tile:
    """Tile of fprop or dgrad: rows are the pixels of all samples, the reduction is over (channel, tap)."""
    rows = _rounded(samples) * pixels
    return _cheapest(tiles, rows, columns, channels * taps, groups, lambda tile: depth(tile, channels, taps))


@functools.lru_cache(1024)
def gradient_tile(tiles: tuple[Tile, ...], samples: int, pixels: int, rows: int, columns: int, groups: int) -> Tile:
    """Tile of wgrad, whose reduction over the pixels of all samples can be split."""
    splits = max(1, _rounded(samples) * pixels // SPLIT_LENGTH)
    return _cheapest(tiles, rows, columns, 1, groups * splits, lambda tile: 1)


def _cheapest(
    tiles: tuple[Tile, ...], rows: int, columns: int, reduction: int, copies: int, depth: Callable[[Tile], int]
) -> Tile:
    """The tile with which `copies` products [rows, reduction] × [reduction, columns] multiply and load least.

    Of those that spend enough of what they multiply on the products, or, if none does, of those that multiply least.
    """

    def programs(tile: Tile) -> int:
        return copies * -(-rows // tile.m) * -(-columns // tile.n)

    def multiplied(tile: Tile) -> int:
        return tile.m * tile.n * depth(tile)

    def cost(tile: Tile) -> int:
        return max(programs(tile), PROGRAMS) * (multiplied(tile) + LOAD * (tile.m + tile.n) * depth(tile))

    issued = {tile: programs(tile) * multiplied(tile) for tile in tiles}
    most = max(min(issued.values()), copies * rows * columns * reduction / USEFUL)
    return min((tile for tile in tiles if issued[tile] <= most), key=cost)


def _rounded(samples: int) -> int:
    """The power of two from `samples` on."""
    return 1 << max(samples - 1, 0).bit_length()


def split(pixels: int, rows: int, columns: int, groups: int, tile: Tile = SQUARE) -> tuple[int, int]:
    """In how many splits, and of how many pixels each, a wgrad sums that runs with `tile` if nothing else is known.

    A function of the shape, the type and the GPU's vendor, as is that tile; never of what was measured.  Eight warps
    count as two programs of four.
    """
    tiles = max(1, -(-rows // tile.m) * -(-columns // tile.n) * groups)
    most = max(1, min(SPLIT_PROGRAMS * 4 // (tiles * tile.warps), pixels // SPLIT_LENGTH))
    length = max(1, -(-pixels // (most * SPLIT_UNIT))) * SPLIT_UNIT
    return max(1, -(-pixels // length)), length


def forced_tile() -> Tile | None:
    """The tile of the enclosing `forced`, if there is one."""
    return _forced.get()


@contextlib.contextmanager
def forced(tile: Tile) -> Iterator[None]:
    """Launch every convolution kernel inside the `with` block with `tile`: for tests and measurements."""
    token = _forced.set(tile)
    try:
        yield
    finally:
        _forced.reset(token)
