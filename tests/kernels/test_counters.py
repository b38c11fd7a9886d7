"""Counts of a launch whose numbers can be worked out by hand."""

import pytest
import torch
from launches import Conv

from benchmarks.counters import counted
from triton_kernels import INTERPRETED, configs

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled in this process")


def test_counts_of_a_pointwise_convolution():
    """64 pixels, 16 channels in and out: one tile, no padding, everything moved once."""
    conv = Conv(1, 16, 16, (8, 8), (1, 1))
    x, w, g = conv.operands(torch.float32)
    x, w = x.contiguous(memory_format=torch.channels_last), w.contiguous(memory_format=torch.channels_last)
    with configs.forced(configs.Tile(64, 16, 16, 4, 1)), counted() as launches:
        conv.launch("conv_fprop", x, w, g, None, torch.channels_last)
    (count,) = launches
    assert (count.kernel, count.grid) == ("conv_fprop_kernel", (1, 1, 1))
    assert count.dots == {(64, 16, 16, "fp32"): 1}
    assert count.dot_flops == 2 * 64 * 16 * 16
    assert count.active == 1
    assert {name: t.bytes for name, t in count.traffic.items()} == {"p_x": 4096, "p_w": 1024, "p_y": 4096}
    assert count.traffic["p_x"].compulsory == 4096
    assert count.sectors == pytest.approx((4096 + 1024 + 4096) / 32, abs=3)  # a tensor may start within a sector


def test_waste_shows():
    """Three channels and 3 × 3 taps in a step of 32: padding is multiplied, and x is read once per tap."""
    conv = Conv(1, 3, 4, (8, 8), (3, 3), padding=1)
    x, w, g = conv.operands(torch.float16)
    with configs.forced(configs.Tile(64, 16, 32, 4, 1)), counted() as launches:
        conv.launch("conv_fprop", x, w, g, None, torch.contiguous_format)
    (count,) = launches
    assert count.dot_flops == 2 * 64 * 16 * 32  # 2 · 64 · 4 · 27 would be of use
    assert (count.traffic["p_w"].lanes, count.traffic["p_w"].active) == (32 * 16, 27 * 4)
    assert 0.4 < count.active < 0.6
    assert count.traffic["p_x"].compulsory == x.numel() * 2
    assert 6 < count.traffic["p_x"].active / x.numel() < 9
    assert count.traffic["p_x"].footprint == pytest.approx(x.numel() * 2 / 32, abs=1)  # by one program, whole
    assert count.traffic["p_y"].excess < 1.2
