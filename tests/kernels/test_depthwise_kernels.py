"""The depthwise kernels against tensor algebra in float64: every type and format, more channels than a tile holds."""

import pytest
import torch
from launches import CONV, DEVICE, DTYPES, Conv, checking, short
from support import assert_close

import triton_kernels
from torchconv.geometry import BlockGeometry
from triton_kernels import configs, conv_depthwise
from triton_kernels.conv_depthwise import is_depthwise, walk_length

DEPTHWISE = {
    "1d": Conv(3, 5, 10, (30,), (5,), stride=2, padding=2, groups=5),
    "2d": Conv(2, 18, 18, (8, 9), (3, 3), padding=1, groups=18),
    "2d_many_taps": Conv(2, 3, 3, (8, 9), (5, 5), padding=2, groups=3),
    "2d_dilated": Conv(2, 4, 4, (13, 12), (4, 3), stride=(4, 3), padding=(3, 2), dilation=2, groups=4),
    "2d_multiplied": Conv(2, 3, 9, (7, 8), (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1), groups=3),
    "3d": Conv(1, 4, 8, (4, 3, 5), (2, 3, 2), padding=1, groups=4),
}


def run(name, conv, dtype, channels_last):
    x, w, g = conv.operands(dtype)
    assert is_depthwise(w, conv.geometry)
    bias = torch.randn(conv.outputs, device=DEVICE).to(dtype)
    with checking() as written:
        results = conv.launch(name, x, w, g, bias, conv.memory_format(channels_last))
        for result in results:
            written(result)
    for result, exact in zip(results, conv.exact(name, x, w, g, bias)):
        assert result.dtype == dtype
        assert_close(result, exact, conv.terms(name), name)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("name", CONV)
def test_every_type(monkeypatch, name, dtype):
    """In several programs along each axis, of several steps each: pixels are walked over, and partial sums added."""
    monkeypatch.setattr(conv_depthwise, "_THREADS", 64)
    monkeypatch.setattr(conv_depthwise, "_PIXELS", 64)
    monkeypatch.setattr(conv_depthwise, "walk_length", lambda *shape: 128)
    monkeypatch.setattr(configs, "SPLIT_LENGTH", 128)
    run(name, DEPTHWISE["2d"], dtype, channels_last=True)
    run(name, DEPTHWISE["2d"], dtype, channels_last=False)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEPTHWISE)
@pytest.mark.parametrize("name", CONV)
def test_geometries(name, case, channels_last):
    conv = DEPTHWISE[case]
    run(name, conv, torch.float32, channels_last and len(conv.size) > 1)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", ["conv_fprop", "conv_wgrad"])
def test_padding_modes(name, padding_mode):
    conv = Conv(2, 4, 4, (5, 6), (3, 3), padding=(3, 2), groups=4, padding_mode=padding_mode)
    run(name, conv, torch.float32, channels_last=True)


def test_gradients_through_winners():
    """The same as of the gradient that the winners stand for, written out."""
    conv = DEPTHWISE["2d"]
    geometry = BlockGeometry(**vars(conv.geometry), pool=(2, 3))
    x, w, _ = conv.operands(torch.float32)
    g = torch.randn(2, 18, *geometry.pooled, device=DEVICE)
    winner = torch.randint(0, 7, g.shape, device=DEVICE).to(torch.uint8)  # tap 6 is nobody's
    full = torch.zeros(2, 18, *geometry.output, device=DEVICE)
    for tap in range(6):
        full[:, :, tap // 3 :: 2, tap % 3 :: 3][:, :, : g.shape[2], : g.shape[3]] = g * (winner == tap)
    contiguous = torch.contiguous_format
    with checking():
        x_grad = triton_kernels.block_dgrad(g, winner, w, geometry, contiguous)
        w_grads = triton_kernels.block_wgrad(x, g, winner, True, geometry, contiguous)
        assert torch.equal(x_grad, triton_kernels.conv_dgrad(full, w, None, conv.geometry, contiguous))
        for actual, expected in zip(w_grads, triton_kernels.conv_wgrad(x, full, True, conv.geometry, contiguous)):
            assert torch.equal(actual, expected)


def test_walks_are_long_where_programs_are_enough():
    """Eight times what lies beyond them: two rows of 56 pixels and two pixels, or one plane of 20 × 30 in three."""
    assert walk_length(32 * 56 * 56, 4, (56, 56), (0, 2, 2)) == 1024  # 8 · 114 = 912 in steps of 256
    assert walk_length(64 * 4 * 600, 64, (4, 20, 30), (1, 0, 0)) == 4864  # 8 · 600 = 4800
    assert walk_length(56 * 56, 4, (56, 56), (0, 2, 2)) == 256  # one image: 52 programs
    assert walk_length(32 * 56 * 56, 4, (56, 56), (0, 0, 0)) == 256  # pointwise: nothing lies beyond
