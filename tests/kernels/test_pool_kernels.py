"""The pooling kernels against tensor algebra: max pooling bit for bit, sums to their rounding."""

import importlib
import math

import pytest
import torch
from launches import DEVICE, DTYPES, checking, short
from support import assert_close

import triton_kernels
from torchconv.eager import indexed as eager_indexed
from torchconv.eager import pool as eager
from torchconv.geometry import AvgGeometry, FractionalGeometry, PoolGeometry, extended

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Sizes [N, C, *size], some of more than one block of 1024 elements; then of_pool's rank, kernel_size, stride, padding,
# dilation and ceil_mode.
POOLS = {
    "1d": ((2, 3, 301), (1, 3, 2, 1, 1, False)),
    "1d_dilated": ((2, 3, 50), (1, 3, 1, 1, 3, False)),
    "2d": ((3, 5, 17, 16), (2, 2, None, 0, 1, False)),
    "2d_overlapping": ((2, 3, 9, 10), (2, 3, 2, 1, 1, False)),
    "2d_ceil": ((2, 3, 8, 9), (2, (3, 2), (3, 2), (1, 0), 1, True)),
    "2d_window_in_the_padding": ((1, 2, 4, 3), (2, 2, 3, 1, 1, True)),
    "2d_dilated": ((2, 3, 11, 9), (2, (2, 3), (1, 2), (1, 1), (3, 2), False)),
    "2d_stride_skips_pixels": ((2, 3, 9, 10), (2, 2, (5, 3), 0, 1, False)),
    "2d_more_than_256_taps": ((1, 2, 20, 21), (2, 17, 1, 4, 1, False)),
    "3d": ((2, 3, 5, 6, 7), (3, (2, 3, 2), (1, 2, 2), (1, 1, 0), 1, False)),
}
# Sizes, then of_adaptive's rank and output_size: windows of two lengths, and more windows than positions.
POOLS |= {
    "1d_adaptive": ((2, 3, 47), (1, 9)),
    "2d_adaptive": ((2, 3, 7, 10), (2, (3, 7))),
    "2d_adaptive_to_more": ((2, 3, 3, 5), (2, (7, 8))),
    "3d_adaptive": ((1, 2, 5, 4, 7), (3, (2, 6, 3))),
}
CHANNELS_LAST = {"2d": torch.channels_last, "3d": torch.channels_last_3d}
IN_FORMATS = [
    pytest.param(shape, arguments, memory_format, id=f"{name}-{str(memory_format).removeprefix('torch.')}")
    for name, (shape, arguments) in POOLS.items()
    for memory_format in (torch.contiguous_format, CHANNELS_LAST.get(name[:2]))
    if memory_format is not None
]


# Averages have no dilation, and no winners whose number could pass 256.
AVERAGED = [p for p in IN_FORMATS if "dilated" not in p.id and "256" not in p.id]


def values(shape, dtype):
    """A few distinct values, so that windows have ties; infinities and NaN where the type has them."""
    x = torch.randint(0 if dtype is torch.uint8 else -5, 6, shape)
    if dtype.is_floating_point:
        x = torch.where(torch.rand(shape) < 0.5, torch.randn(shape), x).to(dtype)
        flat = x.view(-1)
        flat[torch.randperm(flat.numel())[: flat.numel() // 12]] = float("nan")
        flat[torch.randperm(flat.numel())[: flat.numel() // 12]] = -float("inf")
        x[0, 0] = -float("inf")
    return x.to(device=DEVICE, dtype=dtype)


def same(a, b):
    torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def geometry_of(shape, arguments):
    return (
        PoolGeometry.of_adaptive(shape, *arguments) if len(arguments) == 2 else PoolGeometry.of_pool(shape, *arguments)
    )


def max_pool_matches(shape, arguments, memory_format, dtype):
    geometry = geometry_of(shape, arguments)
    x = values(shape, dtype)
    with checking() as written:
        y, offset = triton_kernels.max_pool(x, geometry, memory_format)
        gathered = triton_kernels.max_pool_gather(x, offset, geometry, memory_format)
        for result in (y, offset, gathered):
            written(result)
    expected, winners = eager.max_pool(x.cpu(), geometry, memory_format)
    same(y, expected)
    same(offset, winners)
    same(gathered, eager.max_pool_gather(x.cpu(), winners, geometry, memory_format))
    if dtype.is_floating_point:
        g = torch.randn(y.shape).to(DEVICE, dtype)
        with checking() as written:
            back = triton_kernels.max_pool_scatter(g, offset, geometry, memory_format)
            written(back)
        exact = eager.max_pool_scatter(g.cpu().double(), winners, geometry, memory_format)
        assert_close(back, exact, windows_over_a_pixel(geometry))
        assert back.dtype == dtype
    assert y.dtype == dtype
    for result in (y, offset, gathered):
        assert result.is_contiguous(memory_format=memory_format)


def avg_pool_matches(shape, arguments, memory_format, dtype, include_pad, divisor):
    geometry = extended(AvgGeometry, geometry_of(shape, arguments), include_pad, divisor)
    x = torch.randint(0 if dtype is torch.uint8 else -9, 10, shape) if dtype in INTEGERS else torch.randn(shape)
    x = x.to(device=DEVICE, dtype=dtype)
    with checking() as written:
        y = triton_kernels.avg_pool(x, geometry, memory_format)
        written(y)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    if not dtype.is_floating_point:
        same(y, eager.avg_pool(x.cpu(), geometry, memory_format))
        return
    assert_close(y, eager.avg_pool(x.cpu().double(), geometry, memory_format), geometry.taps)
    g = torch.randn(y.shape).to(DEVICE, dtype)
    with checking() as written:
        back = triton_kernels.avg_pool_grad(g, geometry, memory_format)
        written(back)
    assert back.dtype == dtype
    exact = eager.avg_pool_grad(g.cpu().double(), geometry, memory_format)
    assert_close(back, exact, windows_over_a_pixel(geometry))


def windows_over_a_pixel(geometry):
    if geometry.adaptive:
        return math.prod(o // i + 1 for i, o in zip(geometry.input, geometry.output))
    return math.prod(-(-k // s) for k, s in zip(geometry.kernel, geometry.stride))


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("shape", "arguments", "memory_format"), IN_FORMATS)
def test_max_pool(shape, arguments, memory_format):
    max_pool_matches(shape, arguments, memory_format, torch.float32)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS], ids=short)
@pytest.mark.parametrize("pool", ["2d", "2d_overlapping"])
def test_max_pool_of_every_type(pool, dtype):
    max_pool_matches(*POOLS[pool], torch.channels_last, dtype)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("include_pad", "divisor"), [(True, 0), (False, 0), (True, 3), (True, -2)])
@pytest.mark.parametrize(("shape", "arguments", "memory_format"), AVERAGED)
def test_avg_pool(shape, arguments, memory_format, include_pad, divisor):
    avg_pool_matches(shape, arguments, memory_format, torch.float32, include_pad, divisor)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS], ids=short)
@pytest.mark.parametrize("pool", ["2d", "2d_ceil"])
def test_avg_pool_of_every_type(pool, dtype):
    avg_pool_matches(*POOLS[pool], torch.channels_last, dtype, False, 0)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("size", "output", "kernel"),
    [((50,), (14,), (3,)), ((9, 10), (5, 6), (2, 3)), ((5, 6, 7), (3, 4, 3), (2, 1, 3))],
    ids=["1d", "2d", "3d"],
)
def test_fractional_max_pool(size, output, kernel, dtype):
    geometry = FractionalGeometry(size, output, kernel)
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}.get(len(size), torch.contiguous_format)
    x = values((2, 3, *size), dtype)
    ends = [torch.full((2, 3, o), i - k) for i, o, k in zip(size, output, kernel)]
    starts = torch.cat([(torch.rand(end.shape) * (end + 1)).long() for end in ends], dim=2)
    with checking() as written:
        y, index = triton_kernels.fractional_max_pool(x, starts.to(DEVICE), geometry, memory_format)
        written(y)
        written(index)
    expected, winners = eager_indexed.fractional_max_pool(x.cpu(), starts, geometry, memory_format)
    same(y, expected)
    same(index, winners)


@pytest.mark.parametrize("pool", ["2d_overlapping", "2d_adaptive", "3d"])
def test_offsets_of_64_bits(monkeypatch, pool):
    """The same values with the kernels' branch for big tensors, which no test can allocate."""
    launch = importlib.import_module("triton_kernels.launch")
    monkeypatch.setattr(launch, "needs_int64", lambda *args, **kwargs: True)
    max_pool_matches(*POOLS[pool], torch.contiguous_format, torch.float32)
    avg_pool_matches(*POOLS[pool], torch.contiguous_format, torch.float32, False, 0)


def test_operands_of_any_strides():
    shape, arguments = POOLS["2d_overlapping"]
    geometry = geometry_of(shape, arguments)
    wide = torch.full((*shape[::-1], 2), float("nan"), device=DEVICE)
    wide[..., 0] = torch.randn(shape[::-1])
    x = wide[..., 0].permute(3, 2, 1, 0)
    with checking():
        y, offset = triton_kernels.max_pool(x, geometry, torch.channels_last)
        ones = torch.ones((), device=DEVICE).expand(y.shape)
        back = triton_kernels.max_pool_scatter(ones, offset, geometry, torch.contiguous_format)
    expected, winners = eager.max_pool(x.cpu(), geometry, torch.channels_last)
    same(y, expected)
    same(back, eager.max_pool_scatter(ones.cpu(), winners, geometry, torch.contiguous_format))


def test_the_same_bits_every_time():
    shape, arguments = POOLS["2d_overlapping"]
    geometry = extended(AvgGeometry, geometry_of(shape, arguments), False, 0)
    x = torch.randn(shape, device=DEVICE)

    def run():
        y, offset = triton_kernels.max_pool(x, geometry, torch.contiguous_format)
        return (
            y,
            offset,
            triton_kernels.max_pool_scatter(y, offset, geometry, torch.contiguous_format),
            triton_kernels.avg_pool(x, geometry, torch.contiguous_format),
            triton_kernels.avg_pool_grad(y, geometry, torch.contiguous_format),
        )

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


def test_no_samples():
    geometry = PoolGeometry.of_pool((0, 3, 6, 6), 2, 2, 2, 0, 1, False)
    y, offset = triton_kernels.max_pool(torch.empty(0, 3, 6, 6, device=DEVICE), geometry, torch.contiguous_format)
    assert y.shape == offset.shape == (0, 3, 3, 3)
    assert triton_kernels.max_pool_scatter(y, offset, geometry, torch.contiguous_format).shape == (0, 3, 6, 6)
