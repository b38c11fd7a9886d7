"""Max and average pooling against torch.nn.functional: values, indices, gradients, dtypes, layouts, formats."""

import functools
import itertools
from typing import Any, NamedTuple

import pytest
import support
import torch
from support import (
    AVG_POOL,
    DTYPES,
    HALF,
    LAYOUTS,
    MAX_POOL,
    assert_close,
    check_winners,
    formats,
    laid_out,
    leaf,
    ours,
    rank_of,
    reference,
    signature,
    torchs,
    torchs_signature,
)
from torch import Tensor

from torchconv import functional

on_paths = functools.partial(support.on_paths, eager=("eager", "passes"))
pytestmark = pytest.mark.usefixtures("nan_filled")

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class Case(NamedTuple):
    """Shape of the input, and the other arguments."""

    input: tuple[int, ...]
    arguments: dict[str, Any]


def pool(input: tuple[int, ...], **arguments: Any) -> Case:
    return Case(input, arguments)


# Both poolings take these.
SHAPES = {
    "plain": pool((2, 3, 6, 8), kernel_size=2),
    "odd sizes": pool((1, 5, 7, 9), kernel_size=3, stride=2),
    "one element": pool((2, 3, 1, 1), kernel_size=1),
    "kernel of one": pool((2, 3, 4, 5), kernel_size=1, stride=2),
    "kernel = input": pool((2, 3, 5, 4), kernel_size=(5, 4)),
    "kernel = padded input": pool((2, 3, 2, 2), kernel_size=4, padding=1),
    "kernel per dimension": pool((2, 3, 6, 7), kernel_size=(3, 2), stride=(1, 3), padding=(1, 0)),
    "overlapping": pool((2, 3, 6, 7), kernel_size=3, stride=1, padding=1),
    "stride > kernel": pool((2, 3, 9, 10), kernel_size=2, stride=3),
    "stride > input": pool((2, 3, 4, 4), kernel_size=2, stride=9),
    "padding": pool((2, 3, 5, 6), kernel_size=4, stride=3, padding=2),
    "ceil_mode": pool((2, 3, 6, 7), kernel_size=3, stride=2, ceil_mode=True),
    "ceil_mode, last window in the padding": pool((2, 3, 5, 5), kernel_size=2, stride=2, padding=1, ceil_mode=True),
    "ceil_mode, stride > kernel": pool((2, 3, 7, 9), kernel_size=2, stride=4, padding=1, ceil_mode=True),
    "ceil_mode, window beyond the padding": pool((1, 2, 6, 6), kernel_size=4, stride=5, padding=2, ceil_mode=True),
    "sizes as lists": pool((2, 3, 6, 7), kernel_size=[2, 3], stride=[], padding=[1]),
    "empty batch": pool((0, 3, 5, 6), kernel_size=2, padding=1),
    "unbatched": pool((3, 5, 6), kernel_size=2, padding=1),
    "elements beyond a block": pool((3, 5, 17, 19), kernel_size=3, stride=2, padding=1),
    "1d": pool((2, 3, 11), kernel_size=3, stride=2, padding=1),
    "1d, ceil_mode": pool((2, 3, 10), kernel_size=3, stride=2, ceil_mode=True),
    "1d, unbatched": pool((3, 8), kernel_size=2),
    "1d, empty batch": pool((0, 3, 8), kernel_size=2),
    "3d": pool((2, 2, 4, 5, 6), kernel_size=(2, 3, 2), stride=(2, 1, 3), padding=(1, 1, 0)),
    "3d, ceil_mode": pool((1, 2, 4, 5, 6), kernel_size=2, stride=(3, 2, 3), ceil_mode=True),
    "3d, unbatched": pool((2, 3, 4, 5), kernel_size=2),
    "3d, empty batch": pool((0, 2, 3, 4, 5), kernel_size=2),
}
MAX_CASES = SHAPES | {
    "first tap in the padding everywhere": pool(
        (2, 3, 5, 8), kernel_size=(3, 1), stride=1, padding=(1, 0), dilation=(3, 1)
    ),
    "dilation": pool((2, 3, 8, 9), kernel_size=3, dilation=2),
    "dilation per dimension": pool((2, 3, 8, 9), kernel_size=(2, 3), dilation=(4, 2), stride=1, padding=(1, 1)),
    "dilation, ceil_mode": pool((2, 3, 8, 9), kernel_size=2, dilation=3, stride=3, padding=1, ceil_mode=True),
    "more taps than a byte counts": pool((1, 2, 19, 18), kernel_size=17),
    "1d, dilation": pool((2, 3, 11), kernel_size=3, dilation=3, padding=1),
    "3d, dilation": pool((1, 2, 5, 6, 7), kernel_size=2, dilation=(1, 3, 2), stride=1),
}
AVG_CASES = SHAPES | {
    f"{name}, {option}={value}": case._replace(arguments=case.arguments | {option: value})
    for name, case in SHAPES.items()
    for option, value in (("count_include_pad", False), ("divisor_override", 5), ("divisor_override", -3))
    if any(case.arguments.get(key) for key in ("padding", "ceil_mode")) or option == "divisor_override"
    if not (name.startswith("1d") and option == "divisor_override")
}
CASES = {f"max_pool: {name}": case for name, case in MAX_CASES.items()} | {
    f"avg_pool: {name}": case for name, case in AVG_CASES.items()
}
ON_KERNELS = [
    "max_pool: kernel per dimension",
    "max_pool: stride > kernel",
    "max_pool: dilation, ceil_mode",
    "max_pool: more taps than a byte counts",
    "max_pool: empty batch",
    "max_pool: 1d, dilation",
    "max_pool: 3d",
    "max_pool: 3d, dilation",
    "avg_pool: kernel per dimension",
    "avg_pool: stride > kernel",
    "avg_pool: ceil_mode, window beyond the padding",
    "avg_pool: ceil_mode, window beyond the padding, count_include_pad=False",
    "avg_pool: padding, divisor_override=-3",
    "avg_pool: empty batch",
    "avg_pool: 1d, ceil_mode, count_include_pad=False",
    "avg_pool: 3d, count_include_pad=False",
]

# For each function, the case that stands for it where something other than the shape varies.
TYPICAL = {
    "max_pool1d": pool((2, 3, 11), kernel_size=3, stride=2, padding=1, dilation=2),
    "max_pool2d": pool((2, 3, 7, 6), kernel_size=(3, 2), stride=2, padding=1, ceil_mode=True),
    "max_pool3d": pool((2, 2, 4, 5, 4), kernel_size=(2, 3, 2), stride=(1, 2, 2), padding=1),
    "avg_pool1d": pool((2, 3, 11), kernel_size=3, stride=2, padding=1, count_include_pad=False),
    "avg_pool2d": pool((2, 3, 7, 6), kernel_size=(3, 2), stride=2, padding=1, ceil_mode=True),
    "avg_pool3d": pool((2, 2, 4, 5, 4), kernel_size=(2, 3, 2), stride=(1, 2, 2), padding=1),
}
TYPICAL_ON_KERNELS = ("max_pool2d", "avg_pool2d")


def covering(name: str, arguments: dict[str, Any]) -> int:
    """An upper bound of the numbers that a result or a gradient sums: the taps of a window."""
    kernel = arguments["kernel_size"]
    return torch.Size(kernel if isinstance(kernel, (tuple, list)) else (kernel,) * rank_of(name)).numel()


def result_of(name: str, case: Case) -> Tensor:
    """A random gradient of the result."""
    return torch.randn(torchs(name)(torch.empty(case.input, device="meta"), **case.arguments).shape)


def check(name: str, x: Tensor, arguments: dict[str, Any], device: torch.device, g: Tensor | None) -> None:
    """Values, indices and the gradient for the gradient `g` of the result (None: of its sum) are torch's in float64."""
    expected, gradients = reference(name, {"input": x}, g, **arguments)
    leaf_x = leaf(x, device)
    y = ours(name)(leaf_x, **arguments)
    if g is None:
        y.sum().backward()
    else:
        y.backward(g.to(device))
    assert y.dtype is x.dtype
    assert leaf_x.grad.dtype is x.dtype
    assert y.device.type == device.type
    assert_close(y, expected, covering(name, arguments), "output")
    assert_close(leaf_x.grad, gradients["input"], covering(name, arguments), "gradient")
    if name in MAX_POOL:
        check_winners(name, x, arguments, device)


@pytest.mark.parametrize(("device", "case"), on_paths(CASES, ON_KERNELS), indirect=["device"])
def test_matches_torch(device, case):
    shape, arguments = CASES[case]
    family, detail = case.split(": ")
    name = family + (detail[:2] if detail[:2] in ("1d", "3d") else "2d")
    check(name, torch.randn(shape), arguments, device, result_of(name, CASES[case]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_dtypes(device, name, dtype):
    case = TYPICAL[name]
    check(name, torch.randn(case.input).to(dtype), case.arguments, device, result_of(name, case).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_layout_of_gradient(device, name, layout):
    case = TYPICAL[name]
    check(name, torch.randn(case.input), case.arguments, device, laid_out(result_of(name, case), layout))


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_gradient_of_sum(device, name):
    check(name, torch.randn(TYPICAL[name].input), TYPICAL[name].arguments, device, None)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_layout_of_input(device, name, layout):
    case = TYPICAL[name]
    x, g = laid_out(torch.randn(case.input), layout), result_of(name, case)
    expected, gradients = reference(name, {"input": x}, g, **case.arguments)
    base = x.to(device).requires_grad_()
    seen = laid_out(base, layout) if layout == "expanded" else base.view_as(base)
    y = ours(name)(seen, **case.arguments)
    (gradient,) = torch.autograd.grad(y, seen, g.to(device))
    assert_close(y, expected, covering(name, case.arguments), "output")
    assert_close(gradient, gradients["input"], covering(name, case.arguments), "gradient")


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_same_bits_every_time(device, name):
    x, g = torch.randn(TYPICAL[name].input), result_of(name, TYPICAL[name]).to(device)

    def run() -> list[Tensor]:
        leaf_x = leaf(x, device)
        y = ours(name)(leaf_x, **TYPICAL[name].arguments)
        return [y.detach(), *torch.autograd.grad(y, leaf_x, g)]

    assert all(map(torch.equal, run(), run()))


# Shapes without a size of 1 but where noted, so that every tensor has one format alone.
FORMAT_CASES = {
    "max_pool2d": pool((2, 3, 6, 5), kernel_size=3, stride=1, padding=1),
    "max_pool2d, one pixel": pool((2, 3, 6, 5), kernel_size=(6, 5)),
    "max_pool2d, one channel": pool((2, 1, 6, 5), kernel_size=2),
    "max_pool3d": pool((2, 3, 4, 6, 5), kernel_size=2),
    "avg_pool2d": pool((2, 3, 6, 5), kernel_size=3, stride=1, padding=1),
    "avg_pool2d, one pixel": pool((2, 3, 6, 5), kernel_size=(6, 5)),
    "avg_pool3d": pool((2, 3, 4, 6, 5), kernel_size=2),
}


@pytest.mark.parametrize("gradient_layout", ["as the result", "contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("device", "case"), on_paths(FORMAT_CASES, ["max_pool2d", "avg_pool2d, one pixel"]), indirect=["device"]
)
def test_memory_format(device, case, layout, gradient_layout):
    """Result, indices and gradient are channels_last exactly where torch's are, whatever the layout of the gradient."""
    name = case.split(",")[0]
    x = laid_out(torch.randn(FORMAT_CASES[case].input), layout)
    results = []
    # torch's avg_pool3d alone forgets the format; max_pool3d shows what it would be.
    for function in (torchs(name.replace("avg_pool3d", "max_pool3d")), ours(name)):
        leaf_x = leaf(x, device)
        y = function(leaf_x, **FORMAT_CASES[case].arguments)
        g = torch.ones_like(y)
        if gradient_layout != "as the result":
            g = laid_out(g, gradient_layout)
        # Not `backward`: what accumulates into `.grad` is given the leaf's own strides.
        (gradient,) = torch.autograd.grad(y, leaf_x, g)
        results.append([formats(y), formats(gradient)])
        if name in MAX_POOL:
            results[-1].append(formats(function(leaf_x, return_indices=True, **FORMAT_CASES[case].arguments)[1]))
    assert results[1] == results[0]


@pytest.mark.parametrize("name", ["max_pool2d", "max_pool3d"])
def test_memory_format_follows_the_strides(name):
    """Of dimensions in any order, any one of them expanded."""
    size = (2, 3, 4, 5, 6)[: 2 + rank_of(name)]
    dims = range(len(size))
    for order, expanded in itertools.product(itertools.permutations(dims), (None, *dims)):
        base = torch.randn([1 if dim == expanded else size[dim] for dim in order])
        x = base.permute([order.index(dim) for dim in dims]).expand(size)
        assert ours(name)(x, 1).stride() == torchs(name)(x, 1).stride(), x.stride()


# Max pooling: which element wins -------------------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")
# Channels of twelve, pooled in 1 dimension as they are, in 2 as 3 × 4 and in 3 as 2 × 2 × 3.
AWKWARD = {
    "all equal": [7.0] * 12,
    "ties": [1, 2, 2, 1, 2, 2, 1, 1, 2, 2, 1, 2],
    "zeros of both signs": [0.0, -0.0, 0.0, -0.0, -0.0, 0.0, 0.0, -0.0, -0.0, -0.0, 0.0, 0.0],
    "-inf alone": [-INF] * 12,
    "-inf and a number": [-INF, -INF, -INF, -INF, -INF, -1e30, -INF, -INF, -INF, -INF, -INF, -INF],
    "+inf": [INF, 1, INF, 2, -INF, INF, 3, INF, INF, 4, -INF, 5],
    "a NaN": [1, 2, 3, 4, 5, NAN, 7, 8, 9, 8, 7, 6],
    "NaN first": [NAN, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6],
    "NaN and inf": [INF, NAN, -INF, INF, NAN, 1, NAN, INF, 2, -INF, INF, NAN],
    "several NaN": [1, NAN, NAN, 4, NAN, 6, 7, NAN, 9, NAN, 7, 6],
    "NaN alone": [NAN] * 12,
    "negative alone": [-5, -4, -3, -9, -8, -7, -1, -2, -3, -6, -5, -4],
}
AWKWARD_SIZES = {"max_pool1d": (12,), "max_pool2d": (3, 4), "max_pool3d": (2, 2, 3)}
AWKWARD_ARGUMENTS = {
    "side by side": {"kernel_size": 2},
    "overlapping, padded": {"kernel_size": 2, "stride": 1, "padding": 1},
    "dilated, padded": {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2},
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("arguments", AWKWARD_ARGUMENTS.values(), ids=AWKWARD_ARGUMENTS)
@pytest.mark.parametrize(("device", "name"), on_paths(MAX_POOL, ["max_pool2d"]), indirect=["device"])
def test_winners(device, name, arguments, dtype, layout):
    """Ties, infinities and NaN: the same winner as torch's, and the gradient goes to it alone."""
    x = torch.tensor(list(AWKWARD.values())).to(dtype).view(2, 6, *AWKWARD_SIZES[name])
    x = laid_out(torch.cat([x, x.roll(1, dims=-1)]), layout)
    check_winners(name, x, arguments, device)
    g = torch.randn(torchs(name)(x, **arguments).shape, dtype=torch.float64).to(dtype)
    _, gradients = reference(name, {"input": x}, g, **arguments)
    leaf_x = leaf(x, device)
    (gradient,) = torch.autograd.grad(ours(name)(leaf_x, **arguments), leaf_x, g.to(device))
    assert_close(gradient, gradients["input"], 8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(("device", "name"), on_paths(MAX_POOL, ["max_pool2d"]), indirect=["device"])
def test_winners_among_integers(device, name, dtype, layout):
    """Ties in plenty, and the type's least value, which is no padding."""
    info = torch.iinfo(dtype)
    x = torch.randint(0, 4, TYPICAL[name].input).to(dtype)
    x.flatten()[::2] = info.min
    x.flatten()[-1] = info.max
    check_winners(name, laid_out(x, layout), TYPICAL[name].arguments, device)


@pytest.mark.parametrize(("device", "name"), on_paths(["max_pool2d"]), indirect=["device"])
def test_window_without_input(device, name):
    """Taps on either side of a small input: -inf wins, and no element receives the gradient."""
    arguments = {"kernel_size": (2, 1), "stride": 1, "padding": (1, 0), "dilation": (3, 1)}
    x = torch.randn(1, 2, 2, 5)
    y = ours(name)(leaf_x := leaf(x, device), **arguments)
    assert torch.equal(y.cpu(), torchs(name)(x, **arguments))
    assert (y == -INF).all()
    (gradient,) = torch.autograd.grad(y, leaf_x, torch.ones_like(y))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("device", "name"), on_paths(MAX_POOL, ["max_pool2d"]), indirect=["device"])
def test_indices(device, name):
    """As an option, as a function of its own, and as torch's unpooling reads them; they have no derivative."""
    x = leaf(torch.randn(2, 3, *(6,) * rank_of(name)), device)
    y, index = ours(name)(x, 2, return_indices=True)
    other_y, other_index = ours(f"{name}_with_indices")(x, 2)
    assert y.requires_grad
    assert not index.requires_grad
    assert torch.equal(y, other_y)
    assert torch.equal(index, other_index)
    assert torch.equal(x.detach().flatten(2).gather(2, index.flatten(2)), y.flatten(2))
    unpool = torchs(name.replace("pool", "unpool"))
    assert torch.equal(unpool(y, index, 2).flatten(2).gather(2, index.flatten(2)), y.flatten(2))


# Average pooling: integers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [{}, {"count_include_pad": False}, {"divisor_override": 3}, {"divisor_override": -3}], ids=str
)
@pytest.mark.parametrize(("device", "name"), on_paths(AVG_POOL, ["avg_pool2d"]), indirect=["device"])
def test_average_of_integers(device, name, option):
    """Towards zero, as C divides; beyond float64's 53 bits, too."""
    if name == "avg_pool1d" and "divisor_override" in option:
        option = {}
    x = torch.randint(-9, 10, TYPICAL[name].input)
    x.flatten()[0] = 2**53 + 1
    arguments = TYPICAL[name].arguments | option
    y = ours(name)(x.to(device), **arguments)
    assert y.dtype is torch.int64
    assert torch.equal(y.cpu(), torchs(name)(x, **arguments))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("device", "name"), on_paths(AVG_POOL, ["avg_pool2d"]), indirect=["device"])
def test_half_precision_sums_in_float32(device, name, dtype):
    """2048 and 24 ones: a sum kept in half precision never leaves 2048, whose neighbour is 2050, or 2064."""
    kernel = {1: (25,), 2: (5, 5), 3: (5, 5, 1)}[rank_of(name)]
    x = torch.ones(1, 1, *kernel, dtype=dtype)
    x.flatten()[0] = 2048
    assert ours(name)(x.to(device), kernel).item() == torch.tensor(2072 / 25, dtype=dtype)


@pytest.mark.parametrize("name", AVG_POOL)
def test_average_of_dilated_windows(name):
    """What torch has not: the mean over every other element is that of the slice of them."""
    rank = rank_of(name)
    x = torch.randn(2, 3, *(7, 9, 5)[:rank], dtype=torch.float64)
    y = ours(name)(x, 3, stride=2, dilation=2)
    even = x[(..., *(slice(None, None, 2) for _ in range(rank)))]
    torch.testing.assert_close(y, torchs(name)(even, 3, stride=1))


# Adaptive, power-average, fractional pooling, and unpooling ----------------------------------------------------------

ADAPTIVE = [f"adaptive_{kind}_pool{rank}d" for kind in ("avg", "max") for rank in (1, 2, 3)]
# Sizes of input and output: equal parts, unequal ones, as many parts as elements, more, and one.
ADAPTIVE_CASES = {
    "equal parts": ((6, 8, 4), (3, 2, 4)),
    "unequal parts": ((7, 9, 5), (3, 4, 2)),
    "as many as elements": ((5, 3, 2), (5, 3, 2)),
    "more than elements": ((3, 4, 2), (7, 5, 3)),
    "one": ((5, 7, 3), 1),
    "an int": ((5, 7, 4), 3),
    "nothing": ((5, 7, 4), (0, 2, 3)),
    "a size kept": ((5, 7, 4), (None, 3, None)),
}
ADAPTIVE_ON_KERNELS = ("unequal parts", "more than elements")


@pytest.mark.parametrize(("device", "case"), on_paths(ADAPTIVE_CASES, ADAPTIVE_ON_KERNELS), indirect=["device"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive(device, case, name):
    rank = rank_of(name)
    size, output_size = ADAPTIVE_CASES[case]
    if isinstance(output_size, tuple):
        output_size = output_size[:rank] if rank > 1 or output_size[0] is not None else 5
    for shape in ((2, 3, *size[:rank]), (3, *size[:rank]), (0, 3, *size[:rank])):
        x = torch.randn(shape)
        expected = torchs(name)(x.double(), output_size)
        g = torch.randn(expected.shape)
        exact = leaf(x, dtype=torch.float64)
        gradient = torch.zeros(shape, dtype=torch.float64)
        if expected.numel():  # of nothing torch's own gradient is an error here and there
            (gradient,) = torch.autograd.grad(torchs(name)(exact, output_size), exact, g.double())
        leaf_x = leaf(x, device)
        y = ours(name)(leaf_x, output_size)
        assert_close(y, expected, 64, "output")
        assert_close(torch.autograd.grad(y, leaf_x, g.to(device))[0], gradient, 64, "gradient")
        if "max" in name:
            expected, index = torchs(name)(x, output_size, return_indices=True)
            y, actual = ours(f"{name}_with_indices")(x.to(device), output_size)
            assert torch.equal(y.cpu(), expected)
            assert torch.equal(actual.cpu(), index)
            assert actual.dtype is torch.int64


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("device", "name"), on_paths(ADAPTIVE[3:], ["adaptive_max_pool2d"]), indirect=["device"])
def test_winners_of_adaptive_windows(device, name, layout):
    """Ties, infinities and NaN in windows that overlap."""
    x = torch.tensor(list(AWKWARD.values())).view(2, 6, *AWKWARD_SIZES[name.removeprefix("adaptive_")])
    x, output_size = laid_out(x, layout), {1: 5, 2: 2, 3: (1, 2, 2)}[rank_of(name)]
    expected, expected_index = torchs(name)(x, output_size, return_indices=True)
    y, index = ours(name)(x.to(device), output_size, return_indices=True)
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index.cpu(), expected_index)


@pytest.mark.parametrize("norm_type", [1, 2, 3, 2.5, -1, INF, -INF])
@pytest.mark.parametrize("name", ["lp_pool1d", "lp_pool2d", "lp_pool3d"])
def test_power_average(name, norm_type):
    rank = rank_of(name)
    x = torch.rand(2, 3, *(7, 8, 5)[:rank], dtype=torch.float64) + 0.1
    for arguments in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "ceil_mode": True}):
        results = []
        for function in (torchs(name), ours(name)):
            leaf_x = leaf(x)
            y = function(leaf_x, norm_type, **arguments)
            results.append((y, *torch.autograd.grad(y.sin().sum(), leaf_x)))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("norm_type", [2, 3.0, 1.5, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("name", ["lp_pool2d", "lp_pool3d"])
def test_power_average_of_integers(name, dtype, norm_type):
    """torch takes those whose power it can average."""
    x = torch.randint(0, 5, (2, 3, *(5, 6, 7)[: rank_of(name)])).to(dtype)
    try:
        expected = torchs(name)(x, norm_type, 2)
    except (NotImplementedError, RuntimeError) as error:  # RuntimeError: of minus a bool
        with pytest.raises(type(error)):
            ours(name)(x, norm_type, 2)
    else:
        torch.testing.assert_close(ours(name)(x, norm_type, 2), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [{"output_size": (3, 4, 2)}, {"output_ratio": (0.5, 0.7, 0.8)}, {"output_size": 1}], ids=str
)
@pytest.mark.parametrize("name", ["fractional_max_pool2d", "fractional_max_pool3d"])
def test_fractional(name, size, dtype):
    """The same windows as torch's from the same samples."""
    rank = rank_of(name)
    size = {key: value[:rank] if isinstance(value, tuple) else value for key, value in size.items()}
    for shape in ((2, 3, *(8, 9, 6)[:rank]), (3, *(8, 9, 6)[:rank])):
        x, u = torch.randn(shape, dtype=dtype), torch.rand(2 if len(shape) > rank + 1 else 1, 3, rank, dtype=dtype)
        results = []
        for function in (torchs(name), ours(name)):
            leaf_x = leaf(x)
            y, index = function(leaf_x, (3, 2, 2)[:rank], **size, _random_samples=u, return_indices=True)
            results.append((y, index, *torch.autograd.grad(y.sin().sum(), leaf_x)))
        torch.testing.assert_close(results[1], results[0])


def test_fractional_draws_its_samples():
    """From torch's generator, and others for every sample and channel."""
    x = torch.arange(64.0).expand(2, 3, 64, 64)
    function = ours("fractional_max_pool2d")
    torch.manual_seed(3)
    first, second = function(x, 2, output_size=20), function(x, 2, output_size=20)
    torch.manual_seed(3)
    assert torch.equal(function(x, 2, output_size=20), first)
    assert not torch.equal(second, first)
    assert len({tuple(row.tolist()) for row in first[:, :, 0].flatten(0, 1)}) > 1


@pytest.mark.parametrize("name", ["max_unpool1d", "max_unpool2d", "max_unpool3d"])
def test_unpool(name):
    """What pooling took, each back in its place; told the size that it came from where there are several."""
    rank = rank_of(name)
    odd, even = (7, 5, 3)[:rank], (8, 6, 4)[:rank]
    for shape, arguments in (
        ((2, 3, *even), {}),
        ((3, *even), {"stride": 2, "padding": 0}),
        ((2, 3, *odd), {"output_size": odd}),
        ((2, 3, *odd), {"output_size": (2, 3, *odd)}),
        ((0, 3, *even), {}),
    ):
        y, index = torchs(name.replace("unpool", "pool"))(torch.randn(shape).double(), 2, return_indices=True)
        results = []
        for function in (torchs(name), ours(name)):
            leaf_y = leaf(y)
            z = function(leaf_y, index, 2, **arguments)
            assert z.shape == shape
            results.append((z, *torch.autograd.grad(z.sin().sum(), leaf_y)))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", ["max_unpool1d", "max_unpool2d", "max_unpool3d"])
def test_unpool_into_nothing(name):
    """An output without pixels has no place for an index to miss."""
    shape = (2, 3, *(1, 2, 2)[: rank_of(name)])
    for function in (torchs(name), ours(name)):
        y = function(torch.randn(shape), torch.ones(shape, dtype=torch.int64), 2, padding=1)
        assert y.shape == (2, 3, *(0, 2, 2)[: rank_of(name)])


def test_unpool_of_one_place_twice():
    """The last window's value stays, on every device and every time."""
    y, index = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4, 0, 4]]])
    z = ours("max_unpool1d")(y, index, 2)
    assert z.tolist() == [[[2, 0, 0, 0, 3, 0]]]


@pytest.mark.parametrize("name", [name for name in functional.__all__ if "pool" in name and "relu" not in name])
def test_signature(name):
    assert signature(name) == torchs_signature(name)
