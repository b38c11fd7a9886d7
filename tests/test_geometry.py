"""The shape arithmetic, over every small combination of sizes: against torch's own, and against its definition."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import ours, torchs

from torchconv.geometry import (
    AvgGeometry,
    BlockGeometry,
    ConvGeometry,
    FractionalGeometry,
    IndexGeometry,
    PoolGeometry,
    extended,
    fields_of,
    of_numbers,
    to_numbers,
)
from torchconv.integers import as_tuple, remembered


def size_or_error(function: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Shape of a result without data, or None for a RuntimeError."""
    try:
        return tuple(function(*(torch.empty(size, device="meta") for size in args), **arguments).shape)
    except RuntimeError:
        return None


SIZES = range(1, 8)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_convolution(kernel):
    seen = set()
    for size, stride, padding, dilation in itertools.product(
        SIZES, (1, 2, 3), (0, 1, 2, 3, "same", "valid"), (1, 2, 3)
    ):
        call = (1, 1, size), (1, 1, kernel)
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        expected = size_or_error(torchs("conv1d"), *call, **arguments)
        assert size_or_error(ours("conv1d"), *call, **arguments) == expected, (call, arguments)
        seen.add(expected)
    assert len(seen) > 5  # sizes, and, but for the smallest kernel, errors
    assert None in seen


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_transposed_convolution(kernel):
    seen = set()
    steps = itertools.product(range(1, 5), (1, 2, 3), (0, 1, 2, 3), (0, 1, 2), (1, 2, 3))
    for size, stride, padding, extra, dilation in steps:
        call = (1, 1, size), (1, 1, kernel)
        arguments = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
        expected = size_or_error(torchs("conv_transpose1d"), *call, **arguments)
        # What torch does not check without data: its kernels do, but for nothing at all as a result on the CPU.
        if extra >= max(stride, dilation) or (expected is not None and expected[2] == 0):
            expected = None
        assert size_or_error(ours("conv_transpose1d"), *call, **arguments) == expected, (call, arguments)
        seen.add(expected)
    assert len(seen) > 5
    assert None in seen


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("name", ["max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"])
def test_pooling(name, ceil_mode):
    rank, seen = int(name[-2]), set()
    dilations = (1, 2, 3) if name.startswith("max") else (1,)
    for size, kernel, stride, padding, dilation in itertools.product(
        SIZES, (1, 2, 3, 4), (1, 2, 5), (0, 1, 2), dilations
    ):
        if name == "avg_pool3d" and kernel > size:
            continue  # an error in torch, whatever the padding, in this one of six functions
        call = (1, 1, *(size,) * rank)
        arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        if name.startswith("max"):
            arguments["dilation"] = dilation
        expected = size_or_error(torchs(name), call, **arguments)
        assert size_or_error(ours(name), call, **arguments) == expected, (call, arguments)
        seen.add(expected)
    assert len(seen) > 5
    assert None in seen


def test_transposed_convolution_is_a_convolution_backwards():
    """Its geometry is that of the convolution which maps its output back to its input."""
    for size, kernel, stride, padding, dilation in itertools.product((3, 7), (1, 3), (1, 3), (0, 1), (1, 2)):
        geometry = ConvGeometry.of_conv_transpose((2, 4, size), (4, 6, kernel), stride, padding, 0, 1, dilation)
        back = ConvGeometry.of_conv((2, 6, *geometry.input), (4, 6, kernel), stride, padding, dilation, 1)
        assert back == geometry


@pytest.mark.parametrize("kernel", range(1, 7))
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_padding_same(kernel, dilation):
    """The output has the input's size, and an odd element of padding lies above, not below."""
    geometry = ConvGeometry.of_conv((1, 1, 20), (1, 1, kernel), 1, "same", dilation, 1)
    total = dilation * (kernel - 1)
    assert geometry.output == (20,)
    assert geometry.padding == (total // 2,)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_divisors(count_include_pad, ceil_mode):
    """The elements of a window one by one: inside the input, or inside the padding, but never beyond that."""
    for size, kernel, stride, padding in itertools.product(SIZES, (1, 2, 3, 4), (1, 2, 3), (0, 1, 2)):
        if padding > kernel // 2 or kernel > size + 2 * padding:
            continue
        pool = PoolGeometry.of_pool((1, 1, size), 1, kernel, stride, padding, 1, ceil_mode)
        geometry = extended(AvgGeometry, pool, count_include_pad, 0)
        elements = range(-padding, size + padding) if count_include_pad else range(size)
        expected = [
            max(1, sum(o * stride - padding + k in elements for k in range(kernel))) for o in range(geometry.output[0])
        ]
        assert geometry.counts() == [expected]


def test_as_tuple():
    assert as_tuple(3, 2, "stride") == (3, 3)
    assert as_tuple((3,), 2, "stride") == (3, 3)
    assert as_tuple([3, 4], 2, "stride") == (3, 4)
    assert as_tuple(torch.Size((3, 4)), 2, "stride") == (3, 4)
    with pytest.raises(RuntimeError, match="expected stride to be a single int or 2 ints"):
        as_tuple((1, 2, 3), 2, "stride")
    with pytest.raises(TypeError, match=r"stride .*1\.5"):
        as_tuple(1.5, 2, "stride")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_numbers(rank):
    """What an operator is given of a geometry is all of it."""
    size, weight, two = (2, 4, 9, 8, 7)[: 2 + rank], (6, 2, 2, 3, 2)[: 2 + rank], (2,) * rank
    conv = ConvGeometry.of_conv(size, weight, (2, 1, 3)[:rank], (1, 2, 0)[:rank], (1, 2, 1)[:rank], 2, "reflect")
    pool = PoolGeometry.of_adaptive(size, rank, (4, 3, 5)[:rank])
    for geometry in (
        conv,
        extended(BlockGeometry, conv, two),
        pool,
        extended(AvgGeometry, pool, True, 5),
        FractionalGeometry(size[2:], (4, 5, 3)[:rank], two),
        IndexGeometry(size[2:]),
    ):
        numbers = to_numbers(geometry)
        assert {*map(type, numbers)} == {int}
        again = of_numbers(type(geometry), numbers)
        assert again == geometry
        assert [*map(type, fields_of(again))] == [*map(type, fields_of(geometry))]


def test_remembered():
    """Nothing is found by arguments that are equal to those of an earlier call but not the same, or can change."""
    calls = []

    @remembered
    def function(*args: Any) -> str:
        calls.append(args)
        return repr(args)

    number = torch.tensor(1)
    for args in [(1, (2, 3), "a"), (True, (2, 3), "a"), (1.0, (2, 3), "a"), (1, (2.0, 3), "a"), (1, [2, 3]), (number,)]:
        for _ in range(2):
            assert function(*args) == repr(args)
            number += 1
    assert len(calls) == 2 + 4 * 2  # the first two are kept


def test_geometries_are_values():
    """Equal and hashable, so that they can key a cache, and fixed."""
    first, second = (ConvGeometry.of_conv((2, 3, 8, 8), (4, 3, 3, 3), s, 1, 1, 1) for s in (1, (1, 1)))
    assert first == second
    assert hash(first) == hash(second)
    assert first.rank == 2
    with pytest.raises(AttributeError):
        first.stride = (2, 2)
