"""Tensors of about 2^31 elements, which nobody allocates here: the addresses alone are computed and checked.

The first, middle and last programs of a launch run on tensors without data; integer arithmetic that wraps raises.
"""

import importlib

import pytest
import torch
from launches import CONV, Conv

import triton_kernels
from torchconv.geometry import AvgGeometry, FractionalGeometry, PoolGeometry, extended
from triton_kernels import INTERPRETED, configs

if not INTERPRETED:
    pytest.skip("kernels are compiled in this process", allow_module_level=True)

from checked import Fault, checked

LIMIT = 2**31
# A deep tile: fewer steps through a long reduction, for the interpreter takes 10 ms for each.
DEEP = configs.Tile(16, 32, 1024, 4, 1)

# Each makes one tensor or another as big as its name says; an input plane of 2^16 pixels.
BIG = {
    "big_x": Conv(513, 64, 3, (256, 256), (1, 1), stride=(64, 128)),
    "big_x_few_channels": Conv(10923, 3, 3, (256, 256), (2, 2), stride=(200, 254), dilation=3),
    "big_x_grouped": Conv(513, 64, 32, (256, 256), (1, 1), stride=(128, 64), groups=32),
    "big_g": Conv(513, 3, 64, (256, 256), (3, 3), padding=1),
    "big_both": Conv(513, 64, 64, (256, 256), (1, 1)),
    "big_depthwise": Conv(513, 64, 64, (256, 256), (1, 2), padding=1, groups=64),
    "just_below": Conv(511, 64, 3, (256, 256), (1, 1)),
    "far_beyond": Conv(70000, 64, 3, (256, 256), (1, 1), stride=(128, 128)),
}


def ends(grid):
    """The first, middle and last program along each axis."""
    first, middle, last = (0, 0, 0), tuple(n // 2 for n in grid), tuple(n - 1 for n in grid)
    return sorted({first, middle, last})


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", BIG)
@pytest.mark.parametrize("name", CONV)
def test_convolution(monkeypatch, name, size, channels_last):
    conv = BIG[size]
    x, w, g = conv.operands(torch.float16, "meta")
    assert (max(x.numel(), g.numel()) >= LIMIT) == (size != "just_below")
    if name == "conv_wgrad":
        # The first, the middle and the last split reach the ends of the tensors, in a few deep steps each.
        monkeypatch.setattr(configs, "split", lambda pixels, *rest: (-(-pixels // 16384), 16384))
        monkeypatch.setattr(configs, "SPLIT_PROGRAMS", 2**15)  # of the depthwise kernel: some steps, and some splits
    bias = torch.empty(64, dtype=torch.float16, device="meta")
    # Of the others the tallest, which reaches furthest beyond the end, or the first, which flattens the reduction.
    tile = DEEP if name == "conv_wgrad" else configs.PRODUCT_TILES["half"][0 if conv.channels == 3 else -1]
    with configs.forced(tile), checked(overflow=True, programs=ends) as checker:
        conv.launch(name, x, w, g, bias, conv.memory_format(channels_last))
    assert checker.launches


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("batch", [510, 513, 70000], ids=["just_below", "beyond", "far_beyond"])
@pytest.mark.parametrize("adaptive", [False, True], ids=["", "adaptive"])
def test_pooling(batch, channels_last, adaptive):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    size = (batch, 64, 256, 256)
    pool = PoolGeometry.of_adaptive(size, 2, 200) if adaptive else PoolGeometry.of_pool(size, 2, (3, 2), 2, 1, 1, False)
    average = extended(AvgGeometry, pool, False, 0)
    x = torch.empty(size, dtype=torch.float16, device="meta")
    y = torch.empty(batch, 64, *pool.output, dtype=torch.float16, device="meta")
    offset = y.to(torch.uint8)
    assert (x.numel() >= LIMIT) == (batch > 512)
    with checked(overflow=True, programs=ends):
        triton_kernels.max_pool(x, pool, memory_format)
        triton_kernels.max_pool_gather(x, offset, pool, memory_format)
        triton_kernels.max_pool_scatter(y, offset, pool, memory_format)
        triton_kernels.avg_pool(x, average, memory_format)
        triton_kernels.avg_pool_grad(y, average, memory_format)
        fractional = FractionalGeometry(pool.input, pool.output, pool.kernel)
        starts = torch.empty(batch, 64, sum(pool.output), dtype=torch.int64, device="meta")
        triton_kernels.fractional_max_pool(x, starts, fractional, memory_format)


def test_the_check_finds_an_overflow(monkeypatch):
    """Without 64-bit offsets, the same launches fail."""
    monkeypatch.setattr(importlib.import_module("triton_kernels.conv_fprop"), "needs_int64", lambda *a, **k: False)
    conv = BIG["big_x"]
    x, w, g = conv.operands(torch.float16, "meta")
    for overflow in (True, False):
        message = "overflow" if overflow else "out of bounds"
        with pytest.raises(Fault, match=message), checked(overflow, programs=ends):
            conv.launch("conv_fprop", x, w, g, None, torch.contiguous_format)


@pytest.mark.parametrize("name", CONV)
def test_too_many_pixels_to_count(name):
    conv = Conv(1, 1, 1, (2**16, 2**15), (1, 1))
    with pytest.raises(ValueError, match=r"at most 2\^31 - 2\^16 pixels, got \[65536, 32768\]"):
        conv.launch(name, *conv.operands(torch.float16, "meta"), None, torch.contiguous_format)
