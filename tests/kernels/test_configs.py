"""Which tile a layer gets without tuning: a function of its shape that wastes little and fills the machine."""

import math

import pytest
import torch
import triton
from launches import KINDS, dtype_of, short

from triton_kernels import configs

PRODUCTS = {short(kind): configs.tiles_for(configs.PRODUCT_TILES, dtype_of(kind), str(kind)) for kind in KINDS}
HALF = PRODUCTS["float16"]


def product_tile(tiles, samples, size, channels, outputs, taps):
    return configs.product_tile(tiles, samples, size**2, outputs, 1, channels, taps)


def useful(tile, rows, columns, channels, taps):
    issued = -(-rows // tile.m) * tile.m * -(-columns // tile.n) * tile.n * configs.depth(tile, channels, taps)
    return rows * columns * channels * taps / issued


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("outputs", [16, 20, 24, 48, 64, 80, 96, 112, 192, 256, 1000, 1024])
@pytest.mark.parametrize("channels", [1, 3, 6, 16, 40, 64, 96, 160, 512])
def test_little_is_wasted(kind, channels, outputs):
    """One that makes 0.85 useful, if any does: from 16 channels on, where results fill the narrowest tiles."""
    rows, tiles = 32 * 28 * 28, PRODUCTS[kind]
    tile = product_tile(tiles, 32, 28, channels, outputs, 9)
    best = max(useful(tile, rows, outputs, channels, 9) for tile in tiles)
    assert useful(tile, rows, outputs, channels, 9) >= min(0.85, best)
    if channels >= 16 and outputs % min(tile.n for tile in tiles) == 0:
        assert useful(tile, rows, outputs, channels, 9) >= 0.85


@pytest.mark.parametrize("channels", range(1, 140))
def test_flattening_never_multiplies_more(channels):
    for tile in {tile for tiles in PRODUCTS.values() for tile in tiles}:
        blocks = 9 * math.ceil(channels / tile.k)
        flat = math.ceil(9 * channels / tile.k)
        assert configs.flattened(tile, channels, 9) == (tile.m <= 64 and tile.warps <= 4 and flat <= 7 / 8 * blocks)
        assert configs.depth(tile, channels, 9) in (flat * tile.k, blocks * tile.k)
    assert not any(configs.flattened(tile, channels, 1) for tile in HALF)


def test_the_batch_matters_by_powers_of_two():
    for samples, others in {128: (65, 100, 127), 1: (1,), 256: (129, 255)}.items():
        for size in (7, 14, 56):
            tile = product_tile(HALF, samples, size, 256, 256, 9)
            assert {product_tile(HALF, other, size, 256, 256, 9) for other in others} == {tile}


def test_large_layers_get_large_tiles_and_small_ones_many_programs():
    assert product_tile(HALF, 256, 14, 256, 256, 9)[:3] == (128, 128, 64)
    assert product_tile(HALF, 32, 56, 64, 64, 9)[:3] == (128, 64, 64)
    assert product_tile(HALF, 2, 14, 256, 256, 9).n < 64
    assert product_tile(HALF, 256, 28, 1, 6, 25).n == 8


def test_splits_fill_the_machine_and_cover_the_pixels():
    for pixels in (1, 63, 512, 6272, 25600, 200704, 10**7):
        for rows, columns in ((25, 6), (576, 64), (2304, 256), (20000, 4096)):
            splits, length = configs.split(pixels, rows, columns, 1, configs.Tile(128, 128, 32, 8, 3))
            tiles = math.ceil(rows / 128) * math.ceil(columns / 128)
            assert (splits - 1) * length < pixels <= splits * length
            assert splits == 1 or (2 * splits * tiles <= configs.SPLIT_PROGRAMS and length >= configs.SPLIT_LENGTH)
            # Even ones: the last is not much shorter than the others.
            assert splits * length - pixels < splits * configs.SPLIT_UNIT


@pytest.mark.parametrize(("version", "hip", "least"), [("3.2.0", None, 16), ("3.3.0", None, 8), ("3.8.0", "6.4", 16)])
def test_columns_that_the_compiler_takes(monkeypatch, version, hip, least):
    """Triton before 3.3, and AMD's matrix instructions, have 16 columns or more."""
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(torch.version, "hip", hip)
    for table in (configs.PRODUCT_TILES, configs.GRADIENT_TILES):
        for kind in KINDS:
            tiles = configs.tiles_for(table, dtype_of(kind), str(kind))
            # float64 results have 16 columns at least everywhere.
            wider = kind is torch.float64 and table is configs.PRODUCT_TILES
            assert min(tile.n for tile in tiles) == (16 if wider else least)
