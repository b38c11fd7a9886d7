"""The tiles that the convolution kernels can be launched with, and the choice among them.

A tile says how many rows, columns and reduction elements of a kernel's matrix product one program holds, and how many
warps and pipeline stages it runs with.  The choice looks at the shape alone: no timing, and nothing that depends on the
batch beyond "many rows", so equal layers run equal kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Rows, columns and reduction depth of a program's product; warps; pipeline stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Tiles of fprop and dgrad by bytes per element: many rows (pixels), and as many columns as the layer has channels.
# The narrowest tile that holds them wastes the least; 16 is the least that a matrix instruction takes.
PRODUCT_TILES: dict[int, tuple[Tile, ...]] = {
    # Half precision.  128 rows would reuse the weights more, but their addresses spill in dgrad.
    2: (Tile(64, 16, 32, 4, 3), Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    # float32: twice the bytes, and without TF32 one multiply-add per instruction on operands in registers.
    4: (Tile(64, 16, 16, 4, 3), Tile(64, 32, 16, 4, 3), Tile(32, 64, 16, 4, 3)),
    # float64: two registers an element; wider tiles spill beside 64-bit offsets.
    8: (Tile(32, 16, 16, 4, 2),),
}

# Rows of the tallest of them.
MOST_ROWS = 64

# Tiles of wgrad by bytes per element: few rows (output channels), more columns (channels · taps), a long reduction.
GRADIENT_TILES: dict[int, tuple[Tile, ...]] = {
    2: (Tile(16, 32, 64, 4, 3), Tile(64, 64, 32, 4, 3)),
    # Twice the depth spills a register on sm_100.
    4: (Tile(16, 32, 16, 4, 3), Tile(64, 32, 16, 4, 3)),
    8: (Tile(16, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
}

# From this many channels on, a reduction walks one window tap and a block of channels at a time; below it, the
# flattened (channel, tap) index, because a block of 16 or more would be mostly padding.
TAP_BY_TAP = 16

# How many programs a kernel whose result is small should be split into: two for each of the 132 multiprocessors of an
# H100.  Part of the result's definition (it fixes the order of summation), so it does not follow the device at hand.
SPLIT_PROGRAMS = 264

# Least number of pixels that a split is worth a second pass for; also what a split's length is a multiple of, so that
# every tile's depth divides it.
SPLIT_LENGTH = 512

_forced: ContextVar[Tile | None] = ContextVar("triton_kernels_tile", default=None)


def product_tile(dtype: torch.dtype, columns: int) -> Tile:
    """Tile of fprop or dgrad: the narrowest that holds `columns`, or the widest there is."""
    tiles = PRODUCT_TILES[dtype.itemsize]
    return _forced.get() or next((tile for tile in tiles if tile.n >= columns), tiles[-1])


def gradient_tile(dtype: torch.dtype, rows: int) -> Tile:
    """Tile of wgrad: the shortest that holds `rows`, or the tallest there is."""
    tiles = GRADIENT_TILES[dtype.itemsize]
    return _forced.get() or next((tile for tile in tiles if tile.m >= rows), tiles[-1])


def split(pixels: int, rows: int, columns: int, groups: int) -> tuple[int, int]:
    """In how many splits, and of how many pixels each, wgrad sums: a function of the shape alone."""
    tiles = -(-rows // 64) * -(-columns // 64) * groups
    most = max(1, SPLIT_PROGRAMS // tiles) if tiles else 1
    length = max(1, -(-pixels // (most * SPLIT_LENGTH))) * SPLIT_LENGTH
    return max(1, -(-pixels // length)), length


def is_forced() -> bool:
    return _forced.get() is not None


@contextlib.contextmanager
def forced(tile: Tile) -> Iterator[None]:
    """Launch every convolution kernel inside the `with` block with `tile`: for tests and measurements."""
    token = _forced.set(tile)
    try:
        yield
    finally:
        _forced.reset(token)
