"""The convolution kernels, in every tile that they can be launched with, against tensor algebra in float64.

Sizes are such that every grid axis has two programs or more and the last tile of every axis is partial.
"""

import importlib
import math

import pytest
import torch
import triton
import triton.language as tl
from launches import (
    CONV,
    DEVICE,
    DTYPES,
    KINDS,
    Conv,
    checking,
    dot_precision,
    dtype_of,
    rounded,
    short,
    tiles_of,
)
from support import assert_close

from triton_kernels import INTERPRETED, configs
from triton_kernels.tiles import grouped

LAUNCHES = [
    pytest.param(name, kind, tile, id=f"{name}-{short(kind)}-{'x'.join(map(str, tile))}")
    for name in CONV
    for kind in KINDS
    for tile in tiles_of(name, kind)
]


def two_tiles(name, tile, few):
    """A convolution whose matrix product has two partial tiles along each axis, few or many channels to reduce over.

    Twice 8 × (9 or 10) pixels: more than a tile of rows or, for wgrad, the depth of a split's reduction.
    """
    if name == "conv_wgrad":
        channels = tile.m // 4 + 1 if few else max(17, tile.m // 5)
        return Conv(2, channels, tile.n + 3, (8, max(9, tile.k // 8 + 1)), (2, 3), padding=1)
    reduced, columns = (5 if few else 2 * tile.k - 4), tile.n + 3
    channels, outputs = (reduced, columns) if name == "conv_fprop" else (columns, reduced)
    return Conv(2, channels, outputs, (8, 9), (3, 2) if few else (1, 2), padding=1)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("few", [True, False], ids=["few_channels", "many_channels"])
@pytest.mark.parametrize(("name", "kind", "tile"), LAUNCHES)
def test_every_tile(monkeypatch, name, kind, tile, few, channels_last):
    monkeypatch.setattr(configs, "SPLIT_LENGTH", tile.k)
    conv, dtype = two_tiles(name, tile, few), dtype_of(kind)
    if name != "conv_wgrad":
        reduced = conv.channels if name == "conv_fprop" else conv.outputs
        assert configs.flattened(tile, reduced, math.prod(conv.kernel)) == (few and tile.m <= 64 and tile.warps <= 4)
    x, w, g = rounded(kind, *conv.operands(dtype))
    bias = torch.randn(max(conv.channels, conv.outputs), device=DEVICE).to(dtype)
    with dot_precision(kind), configs.forced(tile), checking() as written:
        results = conv.launch(name, x, w, g, bias, conv.memory_format(channels_last))
        for result in results:
            written(result)
    for result, exact in zip(results, conv.exact(name, x, w, g, bias)):
        assert result.dtype == dtype
        assert_close(result, exact, conv.terms(name), name)


@triton.jit
def grouped_kernel(p_row, p_column, ROWS, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.arange(0, BLOCK)
    m = pid < ROWS * COLUMNS
    row, column = grouped(tl.where(m, pid, 0), ROWS, COLUMNS)
    tl.store(p_row + pid, row, mask=m)
    tl.store(p_column + pid, column, mask=m)


@pytest.mark.parametrize(("rows", "columns"), [(9, 1), (7, 16), (16, 17), (37, 20), (3, 40)])
def test_every_tile_has_one_program(rows, columns):
    row, column = torch.zeros(2, rows * columns, dtype=torch.int32, device=DEVICE).unbind()
    grouped_kernel[(1,)](row, column, rows, COLUMNS=columns, BLOCK=1024)
    places = [*zip(row.tolist(), column.tolist())]
    assert sorted(places) == [(r, c) for r in range(rows) for c in range(columns)]
    together = min(rows, 16) if columns > 16 else 1
    assert len({r for r, _ in places[: together * columns]}) == together


@pytest.mark.parametrize("name", ["conv_fprop", "conv_dgrad"])
def test_many_column_tiles(name):
    """More of them than are walked row by row."""
    conv = Conv(1, 131, 131, (5, 7), (1, 1))
    x, w, g = conv.operands(torch.float64)
    with configs.forced(configs.Tile(16, 8, 64, 4, 1)), checking() as written:
        (result,) = conv.launch(name, x, w, g, None, torch.contiguous_format)
        written(result)
    assert_close(result, conv.exact(name, x, w, g, None)[0], conv.terms(name), name)


GEOMETRIES = {
    "1d": Conv(3, 4, 5, (40,), (3,), stride=2, padding=1),
    "1d_dilated": Conv(3, 20, 5, (40,), (3,), padding=4, dilation=2),
    "2d_pointwise": Conv(2, 17, 6, (7, 6), (1, 1)),
    "2d_strided": Conv(2, 3, 4, (9, 8), (3, 2), stride=(2, 3), padding=(1, 0)),
    "2d_stride_skips_pixels": Conv(2, 3, 4, (9, 8), (1, 2), stride=(3, 4)),
    "2d_dilated_and_strided": Conv(2, 3, 4, (11, 12), (3, 3), stride=(2, 4), padding=3, dilation=(3, 2)),
    "2d_grouped": Conv(2, 6, 9, (6, 7), (3, 3), padding=1, groups=3),
    "2d_grouped_wide": Conv(1, 36, 40, (6, 5), (2, 2), stride=2, padding=1, groups=2),
    "2d_depthwise": Conv(2, 5, 10, (6, 7), (3, 3), padding=1, groups=5),
    "2d_same_even": Conv(2, 3, 4, (6, 7), (2, 4), padding="same"),
    "2d_kernel_covers_input": Conv(3, 4, 5, (4, 3), (4, 3)),
    "2d_more_padding_than_input": Conv(2, 3, 4, (2, 2), (3, 3), padding=5),
    "3d": Conv(2, 3, 4, (5, 4, 3), (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1)),
}


# Where the padding is the input by another index; the adjoint pads with zeros and is folded back by other code.
PADDING_MODES = {
    "1d_circular": Conv(2, 17, 3, (40,), (5,), stride=2, padding=4, padding_mode="circular"),
    "2d_reflect": Conv(2, 3, 4, (5, 6), (3, 4), padding=(4, 2), dilation=(2, 1), padding_mode="reflect"),
    "2d_replicate": Conv(2, 4, 6, (5, 6), (3, 4), stride=(2, 3), padding=5, groups=2, padding_mode="replicate"),
    "3d_circular": Conv(2, 3, 4, (3, 4, 5), (2, 3, 2), padding=(3, 1, 2), padding_mode="circular"),
}
IN_FORMATS = [
    pytest.param(name, conv, channels_last, id=f"{name}-{case}-{'channels_last' if channels_last else 'contiguous'}")
    for name in CONV
    for case, conv in (GEOMETRIES if name == "conv_dgrad" else GEOMETRIES | PADDING_MODES).items()
    for channels_last in (False, True)
    if not (channels_last and len(conv.size) == 1)  # torch has no such format
]


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("name", "conv", "channels_last"), IN_FORMATS)
def test_geometries(name, conv, channels_last):
    x, w, g = conv.operands(torch.float32)
    with checking() as written:
        results = conv.launch(name, x, w, g, None, conv.memory_format(channels_last))
        for result in results:
            written(result)
            if result.dim() > 1:
                assert result.is_contiguous(memory_format=conv.memory_format(channels_last))
    for result, exact in zip(results, conv.exact(name, x, w, g, None)):
        assert_close(result, exact, conv.terms(name), name)


# One input channel per group: other kernels, whose programs hold 32 channels or about 1024 elements of the result.
DEPTHWISE = {
    "2d": Conv(2, 37, 74, (7, 6), (3, 3), padding=1, groups=37),
    "2d_strided_and_dilated": Conv(2, 35, 35, (9, 8), (3, 2), stride=(2, 3), padding=2, dilation=(1, 2), groups=35),
    "1d_circular": Conv(3, 4, 12, (40,), (5,), padding=2, groups=4, padding_mode="circular"),
    "3d": Conv(2, 5, 5, (5, 4, 3), (2, 3, 2), stride=(1, 2, 1), padding=1, groups=5),
}


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("case", DEPTHWISE)
@pytest.mark.parametrize("name", CONV)
def test_depthwise(monkeypatch, name, case, dtype):
    monkeypatch.setattr(configs, "SPLIT_LENGTH", 64)
    conv = DEPTHWISE[case]
    if name == "conv_dgrad":
        conv = conv._replace(padding_mode="zeros")
    x, w, g = conv.operands(dtype)
    bias = torch.randn(conv.outputs, device=DEVICE).to(dtype)
    memory_format = conv.memory_format(channels_last=len(conv.size) == 2)
    with checking() as written:
        results = conv.launch(name, x, w, g, bias, memory_format)
        for result in results:
            written(result)
    for result, exact in zip(results, conv.exact(name, x, w, g, bias)):
        assert result.dtype == dtype
        assert_close(result, exact, conv.terms(name), name)


@pytest.mark.parametrize("groups", [1, 17], ids=["dense", "depthwise"])
@pytest.mark.parametrize("name", CONV)
def test_offsets_of_64_bits(monkeypatch, name, groups):
    """The same values with the kernel's branch for big tensors, which no test can allocate."""
    conv = Conv(2, 17, 17, (9, 8), (3, 2), stride=2, padding=1, groups=groups)
    for module in (*CONV, "conv_depthwise"):
        monkeypatch.setattr(importlib.import_module(f"triton_kernels.{module}"), "needs_int64", lambda *a, **k: True)
    x, w, g = conv.operands(torch.float32)
    bias = torch.randn(17, device=DEVICE)
    with checking():
        results = conv.launch(name, x, w, g, bias, torch.channels_last)
    for result, exact in zip(results, conv.exact(name, x, w, g, bias)):
        assert_close(result, exact, conv.terms(name), name)


@pytest.mark.parametrize("name", CONV)
def test_operands_of_any_strides(name):
    """Views with gaps and reversed dimension orders, next to which lies NaN."""
    conv = Conv(2, 3, 4, (5, 6), (3, 2), padding=1)
    operands = conv.operands(torch.float32)
    views = []
    for t in operands:
        wide = torch.full((*t.shape[::-1], 3), float("nan"), device=DEVICE)
        wide[..., 1] = t.permute(*range(t.dim())[::-1])
        views.append(wide[..., 1].permute(*range(t.dim())[::-1]))
    with checking():
        results = conv.launch(name, *views, None, torch.contiguous_format)
    for result, exact in zip(results, conv.exact(name, *operands, None)):
        assert_close(result, exact, conv.terms(name), name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=short)
@pytest.mark.parametrize("name", CONV)
def test_the_same_bits_every_time(name, dtype):
    conv = Conv(3, 5, 6, (16, 15), (3, 3), padding=1)
    x, w, g = conv.operands(dtype)
    bias = torch.randn(6, device=DEVICE).to(dtype)
    runs = [conv.launch(name, x, w, g, bias, torch.channels_last) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_splits_add_up():
    """Many pixels: more than one split of the length that is used outside tests."""
    conv = Conv(3, 3, 4, (20, 19), (3, 3), padding=1)
    assert configs.split(3 * 20 * 19, 4, 27, 1)[0] > 1
    x, w, g = conv.operands(torch.float32)
    bias = torch.randn(4, device=DEVICE)
    with checking():
        results = conv.launch("conv_wgrad", x, w, g, bias, torch.contiguous_format)
    for result, exact in zip(results, conv.exact("conv_wgrad", x, w, g, bias)):
        assert_close(result, exact, conv.terms("conv_wgrad"))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU rounds in hardware, if the user allows it to")
@pytest.mark.parametrize("name", CONV)
def test_tf32_rounds_the_operands_alone(monkeypatch, name):
    from triton_kernels.interpreter import to_tf32

    monkeypatch.setattr(importlib.import_module(f"triton_kernels.{name}"), "dot_precision", lambda x: "tf32")
    conv = Conv(2, 3, 4, (9, 8), (3, 2), padding=1)
    x, w, g = conv.operands(torch.float32)
    results = conv.launch(name, x, w, g, None, torch.contiguous_format)
    rounded = [torch.from_numpy(to_tf32(t.numpy())) for t in (x, w, g)]
    for result, exact in zip(results, conv.exact(name, *rounded, None)):
        assert_close(result, exact, conv.terms(name), name)


@pytest.mark.parametrize("name", CONV)
def test_no_samples_or_no_bias(name):
    conv = Conv(0, 3, 4, (5, 6), (3, 3))
    x, w, g = conv.operands(torch.float32)
    with checking():
        results = conv.launch(name, x, w, g, torch.ones(4, device=DEVICE), torch.contiguous_format)
    for result, exact in zip(results, conv.exact(name, x, w, g, torch.ones(4))):
        assert torch.equal(result.cpu().double(), exact)
