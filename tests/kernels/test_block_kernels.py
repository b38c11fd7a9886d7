"""The fused block's kernels, in every tile, against convolution, ReLU and max pooling one after the other."""

import importlib

import pytest
import torch
from launches import BLOCK, DEVICE, KINDS, Conv, checking, dot_precision, dtype_of, rounded, short, tiles_of
from support import assert_close

import triton_kernels
from torchconv.eager import conv as eager_conv
from torchconv.eager import pool as eager_pool
from triton_kernels import configs

DEAD = 255

LAUNCHES = [
    pytest.param(name, kind, tile, id=f"{name}-{short(kind)}-{'x'.join(map(str, tile))}")
    for name in BLOCK
    for kind in KINDS
    for tile in tiles_of(name, kind)
]


def whole_numbers(*tensors):
    """Small integers: every product and sum is exact in every type, and windows have ties."""
    return [t.mul(1.5).round().clamp(-2, 2) for t in tensors]


def random_winners(shape, taps):
    winner = torch.randint(0, taps + 1, shape, dtype=torch.uint8, device=DEVICE)
    return winner.masked_fill_(winner == taps, DEAD)


def exact(*tensors):
    return [None if t is None else t.cpu().double() for t in tensors]


def forward_matches(conv, pool, kind, memory_format, bias=True):
    """The pooled values, and winners that name an element of that value; the first of equal ones."""
    geometry, dtype = conv.block(pool), dtype_of(kind)
    x, w, _ = rounded(kind, *conv.operands(dtype))
    b = torch.randn(conv.outputs, device=DEVICE).to(dtype) if bias else None
    with checking() as written:
        y, winner = triton_kernels.block_fprop(x, w, b, geometry, memory_format)
        written(y)
        written(winner)
    assert (y.dtype, winner.dtype) == (dtype, torch.uint8)
    assert y.is_contiguous(memory_format=memory_format)
    y, winner = y.cpu(), winner.cpu()
    z = eager_conv.fprop(*exact(x, w, b), geometry.of_conv_alone(), torch.contiguous_format)
    pooled, _ = eager_pool.max_pool(z.relu(), geometry.of_pool_alone(), torch.contiguous_format)
    assert_close(y, pooled, conv.terms("conv_fprop"))
    assert torch.equal(winner == DEAD, y == 0)
    won = eager_pool.max_pool_gather(z, winner * (winner != DEAD), geometry.of_pool_alone(), torch.contiguous_format)
    assert_close(y, torch.where(winner == DEAD, 0, won), conv.terms("conv_fprop"))

    x, w, b = whole_numbers(x, w, x if b is None else b)
    y, winner = triton_kernels.block_fprop(x, w, b if bias else None, geometry, memory_format)
    z = eager_conv.fprop(*exact(x, w, b if bias else None), geometry.of_conv_alone(), torch.contiguous_format)
    pooled, taps = eager_pool.max_pool(z, geometry.of_pool_alone(), torch.contiguous_format)
    assert torch.equal(y.cpu().double(), pooled.relu())
    assert torch.equal(winner.cpu(), taps.masked_fill(pooled <= 0, DEAD))


def backward_matches(name, conv, pool, kind, memory_format, bias=True):
    geometry, dtype = conv.block(pool), dtype_of(kind)
    x, w, _ = rounded(kind, *conv.operands(dtype))
    size = (conv.batch, conv.outputs, *geometry.pooled)
    (g,) = rounded(kind, torch.randn(size, device=DEVICE).to(dtype))
    winner = random_winners(size, geometry.of_pool_alone().taps)
    # One layer after the other: the gradient of the convolution's output is written out.
    dead = winner.cpu() == DEAD
    taps = winner.cpu().masked_fill(dead, 0)
    full = exact(g)[0].masked_fill(dead, 0)
    full = eager_pool.max_pool_scatter(full, taps, geometry.of_pool_alone(), torch.contiguous_format)
    with checking() as written:
        if name == "block_dgrad":
            results = [triton_kernels.block_dgrad(g, winner, w, geometry, memory_format)]
            expected = [eager_conv.dgrad(full, *exact(w), None, geometry.of_conv_alone(), torch.contiguous_format)]
        else:
            results = triton_kernels.block_wgrad(x, g, winner, bias, geometry, memory_format)
            expected = eager_conv.wgrad(*exact(x), full, bias, geometry.of_conv_alone(), torch.contiguous_format)
        for result in results:
            written(result)
    for result, values in zip(results, expected):
        assert result.dtype == dtype
        assert_close(result, values, conv.terms(name.replace("block", "conv")), name)


def matches(name, conv, pool, kind, memory_format, bias=True):
    if name == "block_fprop":
        forward_matches(conv, pool, kind, memory_format, bias)
    else:
        backward_matches(name, conv, pool, kind, memory_format, bias)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("name", "kind", "tile"), LAUNCHES)
def test_every_tile(monkeypatch, name, kind, tile, memory_format):
    """Two partial tiles along each axis."""
    monkeypatch.setattr(configs, "SPLIT_LENGTH", tile.k)
    conv = {
        "block_fprop": Conv(2, 5, tile.n + 3, (10, 14), (3, 2), padding=1),
        "block_dgrad": Conv(2, tile.n + 3, 5, (9, 8), (2, 3), padding=1),
        "block_wgrad": Conv(2, tile.m // 4 + 1, tile.n + 3, (8, max(9, tile.k // 8 + 1)), (2, 3), padding=1),
    }[name]
    with dot_precision(kind), configs.forced(tile):
        matches(name, conv, (2, 2), kind, memory_format)


CASES = {
    "1d": (Conv(3, 4, 5, (40,), (3,), stride=2, padding=1), (3,)),
    "2d_many_channels": (Conv(2, 17, 18, (6, 7), (2, 3), padding=1), (2, 2)),
    "2d_left_over": (Conv(2, 3, 4, (9, 8), (2, 2)), (3, 2)),
    "2d_strided_and_dilated": (Conv(2, 3, 4, (13, 12), (3, 2), stride=2, padding=2, dilation=(2, 3)), (1, 2)),
    "2d_grouped": (Conv(2, 6, 4, (6, 7), (3, 3), padding=1, groups=2), (2, 3)),
    "2d_depthwise": (Conv(2, 36, 36, (6, 7), (3, 3), padding=1, groups=36), (2, 2)),
    "2d_reflect": (Conv(2, 3, 4, (6, 6), (3, 3), padding=1, padding_mode="reflect"), (2, 2)),
    "3d": (Conv(2, 3, 4, (4, 5, 4), (2, 2, 1)), (1, 2, 2)),
}


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BLOCK)
def test_geometries(name, case):
    conv, pool = CASES[case]
    if conv.padding_mode != "zeros" and name == "block_dgrad":
        conv = conv._replace(padding_mode="zeros")  # the adjoint pads with zeros and is folded back by other code
    matches(name, conv, pool, torch.float32, torch.contiguous_format, bias=False)


@pytest.mark.parametrize("name", BLOCK)
def test_offsets_of_64_bits(monkeypatch, name):
    """The same values with the kernel's branch for big tensors, which no test can allocate."""
    for module in ("block", "conv_dgrad", "conv_wgrad", "conv_depthwise"):
        monkeypatch.setattr(importlib.import_module(f"triton_kernels.{module}"), "needs_int64", lambda *a, **k: True)
    conv, pool = CASES["2d_left_over"]
    matches(name, conv, pool, torch.float32, torch.channels_last)


def test_the_same_bits_every_time():
    conv, pool = CASES["2d_left_over"]
    x, w, _ = conv.operands(torch.float32)
    geometry = conv.block(pool)

    def run():
        y, winner = triton_kernels.block_fprop(x, w, None, geometry, torch.contiguous_format)
        x_bar = triton_kernels.block_dgrad(y, winner, w, geometry, torch.contiguous_format)
        return y, winner, x_bar, *triton_kernels.block_wgrad(x, y, winner, True, geometry, torch.contiguous_format)

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


def test_not_a_number_wins():
    conv = Conv(1, 1, 1, (4, 4), (1, 1))
    x, w, _ = conv.operands(torch.float32)
    x[0, 0, 1, 1] = float("nan")
    y, winner = triton_kernels.block_fprop(x, torch.ones_like(w), None, conv.block((2, 2)), torch.contiguous_format)
    assert y[0, 0, 0, 0].isnan()
    assert winner[0, 0, 0, 0] == 3
    assert y.isnan().sum() == 1
