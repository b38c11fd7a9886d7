"""Random geometries, drawn by hypothesis, against torch.nn.functional in float64: values and all gradients.

`pytest tests/test_random.py --examples 10000` draws as many of each family.  A failure prints the smallest example that
fails, and a line (`@reproduce_failure`) that draws it again.  tests/kernels/test_random_kernels.py draws for the
kernels.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, assert_close, laid_out, leaf, ours, reference

from torchconv.geometry import ConvGeometry, PoolGeometry

FAMILIES = ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")


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


@st.composite
def calls(draw, family, small):
    """`small` for the interpreter: one program a kernel."""
    rank = draw(st.integers(1, 3))
    most = 5 if small else 9

    def ints(low, high):
        return st.tuples(*[st.integers(low, high)] * rank)

    name = f"{family}{rank}d"
    batch = draw(st.integers(0 if family != "adaptive_max_pool" else 1, 3))
    size = draw(ints(1, most))
    arguments: dict[str, Any] = {}
    if family.startswith("conv"):
        groups, per_group, out_per_group = draw(st.tuples(*[st.integers(1, 3)] * 3))
        channels, outputs = groups * per_group, groups * out_per_group
        kernel, stride, dilation = draw(ints(1, 4)), draw(ints(1, 3)), draw(ints(1, 3))
        arguments = {"stride": stride, "dilation": dilation, "groups": groups}
        arguments["padding"] = padding = draw(ints(0, 4))
        if family == "conv" and draw(st.booleans()):
            arguments |= {"padding": draw(st.sampled_from(("same", "valid"))), "stride": 1}
        if family == "conv_transpose":
            arguments["output_padding"] = tuple(min(p, max(s, d) - 1) for p, s, d in zip(padding, stride, dilation))
        shapes = {"input": (batch, channels, *size)}
        shapes["weight"] = (
            (channels, out_per_group, *kernel) if "transpose" in family else (outputs, per_group, *kernel)
        )
        make = ConvGeometry.of_conv_transpose if "transpose" in family else ConvGeometry.of_conv
        try:
            geometry = make(shapes["input"], shapes["weight"], **arguments)
        except RuntimeError:
            assume(False)
        assume(math.prod(geometry.input) < 3000)
        if draw(st.booleans()):
            shapes["bias"] = (outputs,)
        taps = math.prod(kernel)
        pixels = batch * max(math.prod(geometry.input), math.prod(geometry.output))
        terms = {"": per_group * taps, "input": out_per_group * taps, "weight": pixels, "bias": pixels}
        if "transpose" in family:
            terms[""], terms["input"] = terms["input"], terms[""]
    else:
        shapes = {"input": (batch, draw(st.integers(1, 3)), *size)}
        if "adaptive" in family:
            arguments["output_size"] = draw(ints(1, most))
            geometry = PoolGeometry.of_adaptive(shapes["input"], rank, arguments["output_size"])
        else:
            kernel = draw(ints(1, 4))
            arguments = {"kernel_size": kernel, "stride": draw(ints(1, 4)), "ceil_mode": draw(st.booleans())}
            arguments["padding"] = tuple(draw(st.integers(0, k // 2)) for k in kernel)
            dilation = draw(ints(1, 3)) if family == "max_pool" else (1,) * rank
            if family == "max_pool":
                arguments["dilation"] = dilation
            else:
                arguments["count_include_pad"] = draw(st.booleans())
                if rank > 1:
                    arguments["divisor_override"] = draw(st.none() | st.integers(1, 9))
            try:
                geometry = PoolGeometry.of_pool(
                    shapes["input"],
                    rank,
                    **{
                        "dilation": dilation,
                        **{k: arguments[k] for k in ("kernel_size", "stride", "padding", "ceil_mode")},
                    },
                )
            except RuntimeError:
                assume(False)
            # torch reads and writes out of bounds where a window holds nothing of the input, and refuses a three-
            # dimensional average of less input than the window.
            assume(all(a.taps_between(o, 0, a.input) for a in geometry.axes for o in range(a.output)))
            assume(not (name == "avg_pool3d" and any(k > i for k, i in zip(kernel, size))))
        terms = {"": geometry.taps, "input": geometry.taps}
    return Call(
        name,
        shapes,
        arguments,
        terms,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS[:-1])),
        draw(st.sampled_from(LAYOUTS)),
    )


def check(call: Call, device: torch.device) -> None:
    torch.manual_seed(0)
    # Few distinct values, exact in every type, so that windows have ties.
    tensors = {key: torch.randint(-8, 9, size) / 4 for key, size in call.sizes.items()}
    tensors = {
        key: leaf(laid_out(t.to(call.dtype), "contiguous" if key == "bias" else call.layout), device)
        for key, t in tensors.items()
    }
    y = ours(call.name)(**tensors, **call.arguments)
    g = laid_out((torch.randint(-8, 9, y.shape) / 4).to(call.dtype), call.gradient_layout) if y.numel() else None
    if g is None:
        y.sum().backward()
    else:
        y.backward(g.to(device))
    expected, gradients = reference(call.name, tensors, g, **call.arguments)
    assert y.dtype is call.dtype
    assert_close(y, expected, call.terms[""], "result")
    for key, t in tensors.items():
        assert_close(t.grad, gradients[key], call.terms[key], key)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_random(family):
    @given(calls(family, small=False))
    def run(call):
        check(call, torch.device("cpu"))

    run()
