"""Convolution and transposed convolution against torch.nn.functional: values, gradients, dtypes, layouts, formats."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import TYPICAL, check, conv, operands, result_of, terms
from support import (
    CONV,
    CONV_TRANSPOSE,
    DTYPES,
    HALF,
    LAYOUTS,
    assert_close,
    formats,
    laid_out,
    leaf,
    on_paths,
    ours,
    rank_of,
    reference,
    signature,
    torchs,
    torchs_signature,
)
from torch import Tensor

pytestmark = pytest.mark.usefixtures("nan_filled")


CONV_CASES = {
    "one input channel": conv((2, 1, 7, 7), (6, 1, 5, 5)),
    "six outputs": conv((3, 5, 9, 7), (6, 5, 3, 3), padding=1),
    "one output": conv((2, 3, 5, 4), (1, 3, 3, 2)),
    "odd sizes": conv((1, 3, 11, 7), (5, 3, 3, 5), padding=(0, 2)),
    "kernel = input": conv((2, 3, 5, 4), (4, 3, 5, 4)),
    "kernel = padded input": conv((2, 3, 3, 2), (4, 3, 5, 4), padding=1),
    "one pixel": conv((4, 3, 1, 1), (5, 3, 1, 1)),
    "1x1": conv((2, 5, 4, 3), (7, 5, 1, 1)),
    "1x3": conv((2, 2, 4, 5), (3, 2, 1, 3), padding=(0, 1)),
    "1x1 with stride and padding": conv((2, 3, 6, 5), (4, 3, 1, 1), stride=2, padding=1),
    "stride": conv((2, 3, 8, 9), (4, 3, 3, 3), stride=2, padding=1),
    "stride per dimension": conv((2, 3, 8, 9), (4, 3, 3, 2), stride=(3, 2), padding=(2, 1)),
    "stride > kernel": conv((2, 3, 9, 8), (4, 3, 2, 2), stride=3),
    "stride > input": conv((2, 3, 5, 5), (4, 3, 2, 2), stride=7),
    "stride leaves a remainder": conv((1, 2, 10, 11), (3, 2, 3, 3), stride=4),
    "groups": conv((2, 6, 5, 6), (4, 3, 3, 3), groups=2, padding=1),
    "groups of one output": conv((2, 6, 5, 5), (3, 2, 3, 3), groups=3),
    "depthwise": conv((2, 5, 6, 7), (5, 1, 3, 3), groups=5, padding=1),
    "depthwise, two outputs each": conv((2, 3, 6, 6), (6, 1, 3, 3), groups=3, stride=2, dilation=2),
    "dilation": conv((2, 3, 9, 8), (4, 3, 3, 3), dilation=2),
    "dilation per dimension": conv((2, 3, 9, 9), (4, 3, 3, 2), dilation=(1, 4), padding=(1, 3)),
    "dilation and stride": conv((2, 3, 11, 10), (4, 3, 3, 3), dilation=(3, 2), stride=(2, 3), padding=(2, 1)),
    "padding > kernel": conv((2, 3, 4, 5), (4, 3, 2, 3), padding=(4, 5)),
    "padding > kernel, stride > kernel": conv((2, 3, 2, 40), (4, 3, 2, 2), padding=(3, 0), stride=(10, 1)),
    "padding as list": conv((2, 3, 4, 5), (4, 3, 3, 3), padding=[1, 2], stride=[1, 1], dilation=[1, 1]),
    "padding of one element": conv((2, 3, 4, 5), (4, 3, 3, 3), padding=(1,), stride=(2,), dilation=(1,)),
    "valid": conv((2, 3, 5, 6), (4, 3, 3, 3), padding="valid", stride=2),
    "same": conv((2, 3, 5, 6), (4, 3, 3, 5), padding="same"),
    "same, even kernel": conv((2, 3, 5, 6), (4, 3, 2, 4), padding="same"),
    "same, even kernel, dilation": conv((2, 3, 7, 6), (4, 3, 4, 2), padding="same", dilation=(1, 3)),
    "same, kernel > input": conv((2, 3, 3, 2), (4, 3, 6, 5), padding="same"),
    "same, groups": conv((2, 4, 5, 6), (6, 2, 2, 3), padding="same", groups=2),
    "empty batch": conv((0, 3, 5, 6), (4, 3, 3, 3), padding=1),
    "unbatched": conv((3, 5, 6), (4, 3, 3, 3), padding=1),
    "channels beyond a block": conv((1, 17, 5, 5), (33, 17, 3, 3)),
    "pixels beyond a block": conv((1, 2, 33, 31), (3, 2, 3, 3), padding=1),
    "a long batch": conv((65, 1, 4, 4), (2, 1, 3, 3)),
    "1d": conv((2, 3, 11), (4, 3, 3), stride=2, padding=1),
    "1d, groups, dilation": conv((2, 4, 12), (6, 2, 3), groups=2, dilation=3, padding=2),
    "1d, same, even kernel": conv((2, 3, 7), (4, 3, 4), padding="same"),
    "1d, unbatched": conv((3, 7), (4, 3, 2)),
    "1d, empty batch": conv((0, 3, 7), (4, 3, 2)),
    "3d": conv((2, 3, 4, 5, 6), (4, 3, 2, 3, 3), stride=(1, 2, 2), padding=(1, 0, 1)),
    "3d, groups, dilation": conv((2, 4, 5, 6, 5), (6, 2, 2, 3, 2), groups=2, dilation=(2, 1, 3), padding=1),
    "3d, depthwise": conv((1, 3, 4, 4, 5), (3, 1, 3, 3, 3), groups=3, padding=1),
    "3d, same, even kernel": conv((1, 2, 3, 4, 5), (3, 2, 2, 4, 3), padding="same"),
    "3d, unbatched": conv((2, 3, 4, 5), (3, 2, 2, 2, 2)),
    "3d, empty batch": conv((0, 2, 3, 4, 5), (3, 2, 2, 2, 2)),
}
CONV_ON_KERNELS = (
    "one input channel",
    "1x1 with stride and padding",
    "stride > kernel",
    "groups",
    "depthwise",
    "dilation and stride",
    "padding > kernel",
    "same, even kernel",
    "empty batch",
    "unbatched",
    "channels beyond a block",
    "1d, groups, dilation",
    "3d",
)

CONV_TRANSPOSE_CASES = {
    "plain": conv((2, 3, 4, 5), (3, 5, 3, 3)),
    "one channel": conv((2, 1, 3, 4), (1, 1, 2, 2)),
    "one pixel": conv((2, 3, 1, 1), (3, 5, 4, 3)),
    "1x1": conv((2, 5, 4, 3), (5, 7, 1, 1)),
    "stride": conv((2, 3, 4, 5), (3, 5, 3, 3), stride=2, padding=1),
    "stride = kernel": conv((2, 3, 4, 5), (3, 5, 2, 2), stride=2),
    "stride > kernel": conv((2, 3, 4, 5), (3, 5, 2, 2), stride=3),
    "output padding": conv((2, 3, 4, 5), (3, 5, 3, 3), stride=2, padding=1, output_padding=1),
    "output padding per dimension": conv((2, 3, 4, 5), (3, 4, 3, 2), stride=(3, 2), output_padding=(2, 0)),
    "output padding < dilation": conv((2, 3, 4, 5), (3, 5, 3, 3), dilation=3, output_padding=2),
    "output padding < dilation, 1x1": conv((2, 3, 4, 5), (3, 5, 1, 1), dilation=2, output_padding=1),
    "output padding beyond every tap": conv((1, 2, 3, 3), (2, 3, 1, 1), stride=4, output_padding=3),
    "dilation": conv((2, 3, 4, 5), (3, 5, 3, 2), dilation=(2, 3), padding=(1, 2)),
    "dilation and stride": conv((2, 3, 4, 5), (3, 5, 3, 3), dilation=(3, 2), stride=(2, 3), padding=(2, 1)),
    "padding cuts into the product": conv((2, 3, 5, 5), (3, 4, 2, 3), padding=(2, 3)),
    "groups": conv((2, 6, 4, 5), (6, 2, 3, 3), groups=3, stride=2),
    "depthwise": conv((2, 4, 4, 5), (4, 1, 3, 3), groups=4, stride=2, padding=1, output_padding=1),
    "channels beyond a block": conv((1, 17, 3, 3), (17, 33, 3, 3)),
    "empty batch": conv((0, 3, 4, 5), (3, 5, 3, 3), stride=2),
    "unbatched": conv((3, 4, 5), (3, 5, 3, 3), stride=2),
    "1d": conv((2, 3, 5), (3, 4, 3), stride=2, padding=1, output_padding=1),
    "1d, groups, dilation": conv((2, 4, 5), (4, 3, 3), groups=2, dilation=2),
    "1d, unbatched": conv((3, 5), (3, 4, 3)),
    "3d": conv((2, 3, 3, 4, 2), (3, 4, 3, 2, 3), stride=(2, 1, 2), padding=1, output_padding=(1, 0, 1)),
    "3d, groups, dilation": conv((1, 4, 3, 3, 2), (4, 2, 2, 3, 2), groups=2, dilation=(1, 2, 3)),
    "3d, unbatched": conv((3, 2, 3, 2), (3, 2, 2, 2, 2)),
}
CONV_TRANSPOSE_ON_KERNELS = (
    "stride > kernel",
    "output padding per dimension",
    "dilation and stride",
    "groups",
    "depthwise",
    "empty batch",
    "1d",
    "3d",
)

CASES = {f"conv: {name}": case for name, case in CONV_CASES.items()} | {
    f"conv_transpose: {name}": case for name, case in CONV_TRANSPOSE_CASES.items()
}
ON_KERNELS = [f"conv: {name}" for name in CONV_ON_KERNELS]
ON_KERNELS += [f"conv_transpose: {name}" for name in CONV_TRANSPOSE_ON_KERNELS]

TYPICAL_ON_KERNELS = ("conv2d", "conv_transpose2d")


@pytest.mark.parametrize(("device", "case"), on_paths(CASES, ON_KERNELS), indirect=["device"])
def test_matches_torch(device, case):
    name = f"{case.split(':')[0]}{len(CASES[case].weight) - 2}d"
    tensors = operands(name, CASES[case])
    check(name, CASES[case], tensors, device, result_of(name, CASES[case]))


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_without_bias(device, name):
    tensors = operands(name, TYPICAL[name]) | {"bias": None}
    check(name, TYPICAL[name], tensors, device, result_of(name, TYPICAL[name]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_dtypes(device, name, dtype):
    tensors = operands(name, TYPICAL[name], dtype)
    check(name, TYPICAL[name], tensors, device, result_of(name, TYPICAL[name]).to(dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("device", "name"), on_paths(["conv2d", "conv_transpose2d"]), indirect=["device"])
def test_half_precision_sums_in_float32(device, name, dtype):
    """256 equal products: a sum kept in half precision stops growing long before its end."""
    channels = (256, 1) if name == "conv_transpose2d" else (1, 256)
    x, w = torch.full((1, 256, 1, 2), 1.0, dtype=dtype), torch.full((*channels, 1, 1), 1.01, dtype=dtype)
    y = ours(name)(x.to(device), w.to(device))
    assert_close(y, torch.full((1, 1, 1, 2), 256 * w[0, 0, 0, 0].item(), dtype=torch.float64), 256)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_layout_of_gradient(device, name, layout):
    g = laid_out(result_of(name, TYPICAL[name]), layout)
    check(name, TYPICAL[name], operands(name, TYPICAL[name]), device, g)


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_gradient_of_sum(device, name):
    check(name, TYPICAL[name], operands(name, TYPICAL[name]), device, None)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_layout_of_operands(device, name, layout):
    tensors = {key: laid_out(t, layout) if t.dim() > 1 else t for key, t in operands(name, TYPICAL[name]).items()}
    tensors["bias"] = laid_out(tensors["bias"], "expanded" if layout == "expanded" else "strided")
    expected, _ = reference(name, tensors, **TYPICAL[name].arguments)
    with torch.no_grad():  # as they are: a leaf would be a copy, dense again
        y = ours(name)(**{key: t.to(device) for key, t in tensors.items()}, **TYPICAL[name].arguments)
    assert_close(y, expected, terms(name, TYPICAL[name], expected)["y"])

    for argument in ("input", "weight"):  # and the gradient of one while the other is not dense
        one = {key: leaf(t, device) if key == argument else t.to(device) for key, t in tensors.items()}
        y = ours(name)(**one, **TYPICAL[name].arguments)
        g = result_of(name, TYPICAL[name])
        _, gradients = reference(name, tensors, g, **TYPICAL[name].arguments)
        (actual,) = torch.autograd.grad(y, one[argument], g.to(device))
        assert_close(actual, gradients[argument], terms(name, TYPICAL[name], expected)[argument], argument)


# Shapes without a size of 1, so that every tensor has one format alone, but for a 1 × 1 kernel and a depthwise weight.
FORMAT_CASES = {
    "conv2d": conv((2, 4, 6, 5), (6, 4, 3, 3)),
    "conv2d, groups": conv((2, 4, 6, 5), (6, 2, 3, 3), groups=2, stride=2, padding=1),
    "conv2d, 1x1": conv((2, 4, 6, 5), (6, 4, 1, 1)),
    "conv2d, depthwise": conv((2, 4, 6, 5), (4, 1, 3, 3), groups=4),
    "conv3d": conv((2, 4, 3, 4, 3), (6, 4, 2, 2, 2)),
    "conv_transpose2d": conv((2, 4, 6, 5), (4, 6, 3, 3), stride=2),
    "conv_transpose2d, groups": conv((2, 4, 6, 5), (4, 3, 3, 3), groups=2),
    "conv_transpose3d": conv((2, 4, 3, 2, 3), (4, 6, 2, 2, 2)),
}


@pytest.mark.parametrize("gradient_layout", ["as the result", "contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("input_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("device", "case"), on_paths(FORMAT_CASES, ["conv2d"]), indirect=["device"])
def test_memory_format(device, case, input_layout, weight_layout, gradient_layout):
    """Result and gradients are channels_last exactly where torch's are, whatever the layout of the gradient."""
    name = case.split(",")[0]
    tensors = operands(name, FORMAT_CASES[case])
    tensors["input"] = laid_out(tensors["input"], input_layout)
    tensors["weight"] = laid_out(tensors["weight"], weight_layout)
    results = []
    for function in (torchs(name), ours(name)):
        leaves = {key: leaf(t, device) for key, t in tensors.items()}
        y = function(**leaves, **FORMAT_CASES[case].arguments)
        g = torch.ones_like(y)
        if gradient_layout != "as the result":
            g = laid_out(g, gradient_layout)
        # Not `backward`: what accumulates into `.grad` is given the leaf's own strides.
        gradients = torch.autograd.grad(y, list(leaves.values()), g)
        results.append({"output": formats(y)} | dict(zip(leaves, map(formats, gradients))))
    assert results[1] == results[0]


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_not_a_number_spreads_to_its_windows_alone(device, name):
    case = TYPICAL[name]
    tensors = operands(name, case)
    tensors["input"].view(-1)[7] = float("nan")
    expected, _ = reference(name, tensors, **case.arguments)
    assert 0 < expected.isnan().sum() < expected.numel()
    y = ours(name)(**{key: t.to(device) for key, t in tensors.items()}, **case.arguments)
    assert_close(y, expected, terms(name, case, expected)["y"])


@pytest.mark.parametrize(("device", "name"), on_paths(TYPICAL, TYPICAL_ON_KERNELS), indirect=["device"])
def test_same_bits_every_time(device, name):
    tensors, g = operands(name, TYPICAL[name]), result_of(name, TYPICAL[name]).to(device)

    def run() -> list[Tensor]:
        leaves = {key: leaf(t, device) for key, t in tensors.items()}
        y = ours(name)(**leaves, **TYPICAL[name].arguments)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), g)]

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("name", CONV + CONV_TRANSPOSE)
def test_autocast(name, dtype):
    """Convolutions cast as torch's: float16 and float32 to bfloat16, float64 not.  Gradients keep their leaf's type."""
    case = TYPICAL[name]
    tensors = operands(name, case, dtype)
    results = []
    for function in (torchs(name), ours(name)):
        leaves = {key: leaf(t) for key, t in tensors.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = function(**leaves, **case.arguments)
        y.sum().backward()
        results.append((y, leaves))
    (expected, _), (y, leaves) = results
    assert y.dtype is expected.dtype
    rounded = {key: t if y.dtype is torch.float64 else t.bfloat16() for key, t in tensors.items()}
    exact, _ = reference(name, rounded, **case.arguments)
    assert_close(y, exact, terms(name, case, exact)["y"])
    assert all(t.grad.dtype is dtype for t in leaves.values())


def test_autocast_of_mixed_types():
    x, w = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours("conv2d")(x, w).dtype is torch.bfloat16
    with torch.autocast("cpu", enabled=False), pytest.raises(RuntimeError, match="should be the same"):
        ours("conv2d")(x, w)


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("name", CONV)
def test_no_channels(name, unbatched):
    """torch's rule: what has no channels has none after a convolution either, and gradients are zero."""
    rank = rank_of(name)
    tensors = {"input": torch.randn(2, 0, *(6,) * rank), "weight": torch.randn(8, 0, *(3,) * rank)}
    tensors["bias"] = torch.randn(8)
    if unbatched:
        tensors["input"] = tensors["input"][0]
    results = []
    for function in (ours(name), torchs(name)):
        leaves = {key: leaf(t) for key, t in tensors.items()}
        y = function(**leaves)
        y.sum().backward()
        results.append([y, *(t.grad for t in leaves.values())])
    torch.testing.assert_close(*results, check_stride=False)


# Beyond real numbers and zeros outside -------------------------------------------------------------------------------


@pytest.mark.parametrize("lazily", ["", "conj", "imag"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", CONV + CONV_TRANSPOSE)
def test_complex_numbers(name, dtype, lazily):
    """Values and gradients; also of operands whose conjugation or negation is but a bit of the tensor."""
    case = TYPICAL[name]
    tensors = {key: t.detach() for key, t in operands(name, case, torch.complex128).items()}
    results = []
    for function, cast in ((torchs(name), torch.complex128), (ours(name), dtype)):
        leaves = {key: leaf(t, dtype=cast) for key, t in tensors.items()}
        seen = dict(leaves)
        if lazily == "conj":
            seen["input"], seen["weight"] = leaves["input"].conj(), leaves["weight"].conj()
        elif lazily == "imag":
            seen["input"] = torch.view_as_complex(torch.view_as_real(leaves["input"])).conj() * 1j
        y = function(**seen, **case.arguments)
        g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(cast) * (1 + 2j)
        results.append([y.detach(), *torch.autograd.grad(y, list(leaves.values()), g)])
    for actual, expected in zip(results[1], results[0]):
        assert actual.dtype is dtype
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            actual.to(torch.complex128), expected, rtol=0, atol=20 * torch.finfo(dtype).eps * scale
        )


def test_negated_bit():
    """The imaginary part of a conjugate is a negative view of the memory."""
    x = torch.randn(1, 2, 5, 5, dtype=torch.complex128).conj().imag
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    assert x.is_neg()
    torch.testing.assert_close(ours("conv2d")(x, w), torchs("conv2d")(x, w))
    torch.testing.assert_close(ours("max_pool2d")(x, 2), torchs("max_pool2d")(x, 2))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(("device", "name"), on_paths(CONV, ["conv2d"]), indirect=["device"])
def test_padding_mode(device, name, mode):
    """Convolution of an input that torch.nn.functional.pad has padded."""
    rank = rank_of(name)
    case = conv((2, 4, *(5, 7, 4)[:rank]), (6, 2, *(3, 2, 2)[:rank]), stride=2, groups=2)
    padding = (2, 1, 1)[:rank]
    tensors = operands(name, case)
    exact = {key: leaf(t, dtype=torch.float64) for key, t in tensors.items()}
    padded = F.pad(exact["input"], [p for n in reversed(padding) for p in (n, n)], mode=mode)
    expected = torchs(name)(**exact | {"input": padded}, **case.arguments)
    g = torch.randn(expected.shape)
    gradients = torch.autograd.grad(expected, list(exact.values()), g.double())

    leaves = {key: leaf(t, device) for key, t in tensors.items()}
    y = ours(name)(**leaves, **case.arguments, padding=padding, padding_mode=mode)
    count = terms(name, case, expected)
    assert_close(y, expected.detach(), count["y"])
    # An element of the input can be seen at several places outside it.
    count["input"] *= 4
    actual = torch.autograd.grad(y, list(leaves.values()), g.to(device))
    for key, gradient, exact_gradient in zip(leaves, actual, gradients):
        assert_close(gradient, exact_gradient, count[key], key)


def test_padding_mode_beyond_the_input():
    x, w = torch.randn(1, 1, 4, 5), torch.randn(1, 1, 3, 3)
    for mode, most in (("reflect", 3), ("circular", 4)):
        ours("conv2d")(x, w, padding=most, padding_mode=mode)
        with pytest.raises(RuntimeError, match=rf"padding_mode='{mode}'.*size 4"):
            ours("conv2d")(x, w, padding=most + 1, padding_mode=mode)
        with pytest.raises((RuntimeError, AssertionError)):
            F.pad(x, [most + 1] * 4, mode=mode)
    with pytest.raises(ValueError, match=r"padding_mode must be one of .*'mirror'"):
        ours("conv2d")(x, w, padding=1, padding_mode="mirror")


@pytest.mark.parametrize("name", CONV + CONV_TRANSPOSE)
def test_signature(name):
    assert signature(name) == torchs_signature(name)
