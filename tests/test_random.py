"""Random geometries, drawn by hypothesis, against torch.nn.functional in float64: values and all gradients.

`pytest tests/test_random.py --examples 10000` draws as many of each family.  A failure prints the smallest example that
fails, and a line (`@reproduce_failure`) that draws it again.  tests/kernels/test_random_kernels.py draws for the
kernels.
"""

import dataclasses
import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, assert_close, laid_out, leaf, ours, reference, torchs

from torchconv.eager import pool
from torchconv.geometry import ConvGeometry, PoolGeometry

FAMILIES = (
    "conv",
    "conv_transpose",
    "max_pool",
    "avg_pool",
    "lp_pool",
    "adaptive_max_pool",
    "adaptive_avg_pool",
    "fractional_max_pool",
    "max_unpool",
)
MOST = 3000  # elements of an image, where a call makes one larger


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a function of this package, up to the random numbers in its tensors."""

    name: str
    sizes: dict[str, tuple[int, ...]]
    arguments: dict[str, Any]
    terms: dict[str, int]  # how many products an element of the result ("") or of a gradient sums
    dtype: torch.dtype
    layout: str
    gradient_layout: str
    few: int  # values of all windows that pooling takes at once


@st.composite
def calls(draw, family, small):
    """`small` for the interpreter: one program a kernel."""
    rank = draw(st.integers(2 if "fractional" in family else 1, 3))
    most = 5 if small else 9

    def ints(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    batch, size = draw(st.integers(0, 3)), ints(1, most)
    of_family = {"conv": convolution, "conv_transpose": convolution, "max_unpool": unpooling}.get(family, pooling)
    shapes, arguments, terms = of_family(draw, ints, family, batch, size)
    return Call(
        f"{family}{rank}d",
        shapes,
        arguments,
        terms,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS[:-1])),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from((0, pool._FEW))),
    )


def convolution(draw, ints, family, batch, size):
    groups, per_group, out_per_group = draw(st.tuples(*[st.integers(1, 3)] * 3))
    channels, outputs = groups * per_group, groups * out_per_group
    kernel, stride, dilation, padding = ints(1, 4), ints(1, 3), ints(1, 3), ints(0, 4)
    arguments = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
    shapes = {"input": (batch, channels, *size)}
    if family == "conv":
        if draw(st.booleans()):
            arguments |= {"padding": draw(st.sampled_from(("same", "valid"))), "stride": 1}
        shapes["weight"], make = (outputs, per_group, *kernel), ConvGeometry.of_conv
    else:
        arguments["output_padding"] = tuple(min(p, max(s, d) - 1) for p, s, d in zip(padding, stride, dilation))
        shapes["weight"], make = (channels, out_per_group, *kernel), ConvGeometry.of_conv_transpose
    geometry = fitting(make, shapes["input"], shapes["weight"], **arguments)
    assume(math.prod(geometry.input) < MOST)
    if draw(st.booleans()):
        shapes["bias"] = (outputs,)
    taps = math.prod(kernel)
    pixels = batch * max(math.prod(geometry.input), math.prod(geometry.output))
    return shapes, arguments, {"": per_group * taps, "input": out_per_group * taps, "weight": pixels, "bias": pixels}


def pooling(draw, ints, family, batch, size):
    shape, rank = (max(batch, int(family == "adaptive_max_pool")), draw(st.integers(1, 3)), *size), len(size)
    if "adaptive" in family:
        arguments = {"output_size": ints(1, max(size))}
        taps = PoolGeometry.of_adaptive(shape, rank, **arguments).taps
    elif "fractional" in family:
        spare = 1 if rank == 3 else 0  # torch's rule
        assume(min(size) > spare)
        kernel = tuple(draw(st.integers(1, n - spare)) for n in size)
        output = tuple(draw(st.integers(1, n - k + 1 - spare)) for n, k in zip(size, kernel))
        arguments, taps = {"kernel_size": kernel, "output_size": output}, math.prod(kernel)
    else:
        kernel, ones = ints(1, 4), (1,) * rank
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel) if family != "lp_pool" else (0,) * rank
        dilation = ints(1, 3) if family == "max_pool" else ones
        arguments = {"kernel_size": kernel, "stride": ints(1, 4), "ceil_mode": draw(st.booleans())}
        geometry = fitting(PoolGeometry.of_pool, shape, rank, padding=padding, dilation=dilation, **arguments)
        # torch reads and writes out of bounds where a window holds nothing of the input, and refuses a three-
        # dimensional average of less input than the window.
        assume(all(a.taps_between(o, 0, a.input) for a in geometry.axes for o in range(a.output)))
        assume(family == "max_pool" or rank < 3 or all(k <= i for k, i in zip(kernel, size)))
        taps = geometry.taps
        if family == "max_pool":
            arguments |= {"padding": padding, "dilation": dilation}
        elif family == "avg_pool":
            arguments |= {"padding": padding, "count_include_pad": draw(st.booleans())}
            if rank > 1:
                arguments["divisor_override"] = draw(st.none() | st.integers(1, 9))
        else:
            arguments["norm_type"] = draw(st.sampled_from((1, 2, 3, 2.5, math.inf, -math.inf)))
            if rank == 1:
                arguments["kernel_size"] = kernel[0]  # torch multiplies by it
    return {"input": shape}, arguments, {"": taps, "input": taps}


def unpooling(draw, ints, family, batch, size):
    kernel, stride = ints(1, 4), ints(1, 4)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    output = tuple((n - 1) * s + k - 2 * p for n, s, k, p in zip(size, stride, kernel, padding))
    assume(min(output) > 0 and math.prod(size) <= math.prod(output) < MOST)
    arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "output_size": output}
    return {"input": (batch, draw(st.integers(1, 3)), *size)}, arguments, {"": 1, "input": 1}


def fitting(make, *shapes, **arguments):
    """The geometry of what was drawn, if there is one."""
    try:
        return make(*shapes, **arguments)
    except RuntimeError:
        assume(False)


def check(call: Call, device: torch.device) -> None:
    torch.manual_seed(0)
    power = call.name.startswith("lp_pool")
    # Few distinct values, exact in every type, so that windows have ties.  Powers need positive ones, and no gradients
    # that cancel one another: each is rounded on its own.
    least = 1 if power else -8
    tensors = {key: torch.randint(least, 9, size) / 4 for key, size in call.sizes.items()}
    tensors = {
        key: leaf(laid_out(t.to(call.dtype), "contiguous" if key == "bias" else call.layout), device)
        for key, t in tensors.items()
    }
    x, arguments = tensors["input"], dict(call.arguments)
    if "unpool" in call.name:  # no position twice: which of the two stays is not torch's to say
        pixels = torch.rand(*x.shape[:2], math.prod(arguments["output_size"]), device=device)
        arguments["indices"] = pixels.argsort(-1)[..., : math.prod(x.shape[2:])].view(x.shape)
    if "fractional" in call.name:
        arguments["_random_samples"] = torch.rand(*x.shape[:2], x.dim() - 2, dtype=x.dtype, device=device)
    with mock.patch.object(pool, "_FEW", call.few):
        y = ours(call.name)(**tensors, **arguments)
        g = laid_out((torch.randint(least, 9, y.shape) / 4).to(call.dtype), call.gradient_layout) if y.numel() else None
        actual = gradients_of(y, tensors, g)
    assert y.dtype is call.dtype
    # What tracing believes of the result and of the gradients, from tensors without data.
    z = ours(call.name)(**(traced := without_data(tensors)), **without_data(arguments))
    believed = gradients_of(z, traced, None if g is None else without_data({"g": g})["g"])
    # torch itself, in elementwise steps, believes other strides of a size of 1, and so other formats of what has one.
    least_size = (math.inf if 1 in x.shape else 2) if power else 1
    assert [described(t, least_size) for t in (z, *believed)] == [described(t, least_size) for t in (y, *actual)]
    if "fractional" in call.name:
        expected, gradients = fractional_reference(call.name, x, g, arguments)
    else:
        cpus = {key: t.cpu() if isinstance(t, torch.Tensor) else t for key, t in arguments.items()}
        expected, gradients = reference(call.name, tensors, g, **cpus)
    # A power average rounds after each of its own steps, and backward each of theirs.
    assert_close(y, expected, call.terms[""], "result", roundings=4 if power else 1)
    for key, gradient in zip(tensors, actual):
        assert_close(gradient, gradients[key], call.terms[key], key, roundings=9 if power else 1)


def gradients_of(y, tensors, g):
    """Those of `tensors`, for the result's own gradient `g`; None for that of a result without elements."""
    if g is None:
        return torch.autograd.grad(y.sum(), list(tensors.values()))
    return torch.autograd.grad(y, list(tensors.values()), g.to(y.device))


def without_data(values):
    return {
        key: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta", requires_grad=t.requires_grad)
        if isinstance(t, torch.Tensor)
        else t
        for key, t in values.items()
    }


def described(t, least_size):
    """Type, shape, and the strides that lead somewhere: those of sizes from `least_size`, where there are elements."""
    strides = [step for size, step in zip(t.shape, t.stride()) if t.numel() and size >= least_size]
    return t.dtype, t.shape, strides


def fractional_reference(name, x, g, arguments):
    """As `support.reference`, but of the windows that torch finds in x's own type, for they depend on its rounding."""
    same = {key: t.cpu() if isinstance(t, torch.Tensor) else t for key, t in arguments.items()}
    _, indices = torchs(name)(x.detach().cpu().contiguous(), **same, return_indices=True)
    exact = x.detach().cpu().double().contiguous().requires_grad_()
    y = exact.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    [gradient] = torch.autograd.grad(y, exact, torch.ones_like(y) if g is None else g.cpu().double())
    return y.detach(), {"input": gradient}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_random(family):
    @given(calls(family, small=False))
    def run(call):
        check(call, torch.device("cpu"))

    run()
