"""The fused block against the three functions of torch.nn.functional that it fuses."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import DTYPES, Recorder, assert_close, laid_out, leaf, on_paths

import torchconv
from torchconv.functional import conv_relu_max_pool2d

# Sizes of input and weight, then stride, padding, dilation, groups and pool_size.
CASES = {
    "lenet": ((3, 1, 12, 12), (6, 1, 5, 5), (1, 2, 1, 1, 2)),
    "strided, grouped, odd rest": ((2, 4, 13, 12), (6, 2, 3, 3), (2, 1, 1, 2, (2, 3))),
    "dilated, three by three": ((2, 3, 13, 14), (4, 3, 3, 2), (1, 1, 2, 1, 3)),
    "same": ((2, 2, 6, 7), (3, 2, 4, 4), (1, "same", 1, 1, 2)),
    "pool of one": ((2, 2, 5, 5), (3, 2, 3, 3), (1, 0, 1, 1, 1)),
    "pool as large as the output": ((2, 2, 7, 6), (3, 2, 2, 2), (1, 0, 1, 1, (6, 5))),
    "many windows": ((5, 3, 40, 44), (40, 3, 3, 3), (1, 1, 1, 1, 2)),
}


def unfused(x, w, bias, stride=1, padding=0, dilation=1, groups=1, pool_size=2):
    return F.max_pool2d(F.relu(F.conv2d(x, w, bias, stride, padding, dilation, groups)), pool_size)


def operands(x_size, w_size, dtype=torch.float64, device="cpu"):
    return [torch.randn(size, dtype=dtype, device=device) for size in (x_size, w_size, (w_size[0],))]


@pytest.mark.parametrize(("device", "case"), on_paths(CASES, ("lenet", "dilated, three by three")), indirect=["device"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_equals_the_three(device, case, layout):
    """Values, gradients and memory formats; one channel is dead, and one holds a NaN."""
    x_size, w_size, arguments = CASES[case]
    x, w, bias = operands(x_size, w_size, device=device)
    bias[0] = -100
    x.view(-1)[7] = float("nan")
    tensors = [leaf(laid_out(x, layout)), leaf(w), leaf(bias)]
    twins = [leaf(t, "cpu") for t in tensors]
    y, expected = conv_relu_max_pool2d(*tensors, *arguments), unfused(*twins, *arguments)
    g = torch.randn_like(expected)
    results = (y, *torch.autograd.grad(y, tensors, g.to(device)))
    for actual, reference in zip(results, (expected, *torch.autograd.grad(expected, twins, g))):
        torch.testing.assert_close(actual.cpu(), reference, equal_nan=True)
        assert actual.stride() == reference.stride()
    assert (y[:, 0].nan_to_num() == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [5, 100])
def test_is_its_parts(dtype, outputs):
    """What the block rounds, it rounds where its parts round; sums alone may be taken in another order."""
    x, w, bias = operands((2, 3, 10, 11), (outputs, 3, 3, 3), torch.float64)
    # Numbers whose sums are exact: every bit is the same.
    x, w, bias = ((t * 4).round().div(4).to(dtype) for t in (x, w, bias))
    y = torchconv.functional.conv2d(x, w, bias, padding=1)
    parts = torchconv.functional.max_pool2d(torch.relu(y), 2)
    assert torch.equal(conv_relu_max_pool2d(x, w, bias, padding=1), parts)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["x", "g"])
def test_infinity_stays_in_its_windows(value, where):
    """Where taps are computed by a common patch, a zero of another tap's weight must not meet an infinity."""
    x, w, bias = operands((2, 3, 12, 12), (4, 3, 3, 3), torch.float64)
    g = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    (x[1, 2] if where == "x" else g[1, 2])[2, 3] = value
    results = []
    for function in (conv_relu_max_pool2d, lambda *t: F.max_pool2d(F.relu(F.conv2d(*t)), 2)):
        leaves = [leaf(t) for t in (x, w, bias)]
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, g)))
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("where", ["x", "w"])
def test_infinity_meets_what_windows_leave(where):
    """The gradient of the output that no window holds is 0, and 0 · ∞ is NaN."""
    x, w, bias = operands((2, 3, 13, 13), (4, 3, 3, 3), torch.float64)
    (x if where == "x" else w)[1, 2, -1, -1] = float("inf")
    g = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    results = []
    for function in (conv_relu_max_pool2d, unfused):
        leaves = [leaf(t) for t in (x, w, bias)]
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, g)))
    assert any(t.isnan().any() for t in results[1])
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_every_type(dtype):
    tensors = [leaf(t) for t in operands((4, 3, 16, 16), (5, 3, 3, 3), dtype)]
    # Half precision rounds the convolution's output, and ties are broken as it does: torch in float64, its winners.
    y = conv_relu_max_pool2d(*tensors)
    g = torch.randn_like(y)
    twins = [leaf(t.detach().double()) for t in tensors]
    z = F.conv2d(*twins)
    rounded, winners = F.max_pool2d(z.to(dtype).to(z.dtype), 2, return_indices=True)
    expected = z.flatten(2).gather(2, winners.flatten(2)).view(rounded.shape) * (rounded > 0)
    exact = torch.autograd.grad(expected, twins, g.double())
    for actual, reference, terms in zip(torch.autograd.grad(y, tensors, g), exact, (45, 784, 784)):
        assert_close(actual, reference, terms)


@pytest.mark.parametrize("needed", list(itertools.product((True, False), repeat=3)))
def test_only_what_is_asked_for(needed):
    x, w, bias = (t.requires_grad_(need) for t, need in zip(operands((2, 2, 6, 6), (3, 2, 3, 3)), needed))
    with Recorder() as recorder:
        y = conv_relu_max_pool2d(x, w, bias)
        if any(needed):
            y.sum().backward()
    expected = ["block_fprop", *["block_dgrad"] * needed[0], *["block_wgrad"] * needed[1]]
    assert recorder.ours == expected
    assert not recorder.forbidden
    for t, twin, need in zip((x, w, bias), operands((2, 2, 6, 6), (3, 2, 3, 3)), needed):
        assert (t.grad is not None) == need
        assert twin.shape == t.shape


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
@pytest.mark.parametrize("gradient", ["input", "weight"])
def test_only_what_is_asked_for_of_a_gradient(gradient, needed):
    """A product by linearity: what leads to one factor does not compute what would lead to the other."""
    x, w, bias = operands((2, 2, 6, 6), (3, 2, 3, 3))
    g = torch.randn(2, 3, 2, 2, dtype=x.dtype)
    first, second = (t.requires_grad_(need) for t, need in zip((g, w) if gradient == "input" else (x, g), needed))
    x, w = leaf(x.detach()), leaf(w.detach())
    y = conv_relu_max_pool2d(first if gradient == "weight" else x, second if gradient == "input" else w, bias)
    of, g = (x, first) if gradient == "input" else (w, second)
    [result] = torch.autograd.grad(y, of, g, create_graph=True)
    with Recorder() as recorder:
        torch.autograd.grad(result.sum(), first if needed[0] else second)
    by_gradient = ["conv_fprop", "max_pool_gather"]  # the gradient of the output is linear in the other two
    by_factor = ["max_pool_scatter", "conv_wgrad" if gradient == "input" else "conv_dgrad"]
    asked_of_gradient = needed[0] if gradient == "input" else needed[1]
    assert recorder.ours == (by_gradient if asked_of_gradient else by_factor)


def test_keeps_a_byte_per_output():
    """Backward keeps the input, the weight, and one byte for each pooled element."""
    kept = []
    x, w, bias = (leaf(t) for t in operands((2, 3, 12, 12), (8, 3, 3, 3), torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = conv_relu_max_pool2d(x, w, bias)
    assert sorted(t.nbytes for t in kept) == sorted((x.nbytes, w.nbytes, y.numel()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives():
    tensors = tuple(leaf(t) for t in operands((2, 2, 5, 6), (2, 2, 2, 3)))
    checks = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(
        conv_relu_max_pool2d, tensors, check_forward_ad=True, check_batched_forward_grad=True, **checks
    )
    assert torch.autograd.gradgradcheck(conv_relu_max_pool2d, tensors, check_fwd_over_rev=True, **checks)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 1, None), (0, 1, 0), (None, None, 0)])
def test_vmap(in_dims):
    sizes = ((3, 2, 6, 6), (2, 2, 3, 3), (2,))
    tensors = [
        torch.randn(size if dim is None else (*size[:dim], 4, *size[dim:]), dtype=torch.float64)
        for size, dim in zip(sizes, in_dims)
    ]
    torch.testing.assert_close(
        torch.vmap(conv_relu_max_pool2d, in_dims)(*tensors), torch.vmap(unfused, in_dims)(*tensors)
    )


def test_empty_batch_and_unbatched():
    x, w, bias = (leaf(t) for t in operands((0, 2, 6, 6), (3, 2, 3, 3)))
    y = conv_relu_max_pool2d(x, w, bias)
    assert y.shape == (0, 3, 2, 2)
    y.sum().backward()
    assert (w.grad == 0).all()
    assert (bias.grad == 0).all()
    x, w, bias = operands((2, 6, 6), (3, 2, 3, 3))
    torch.testing.assert_close(conv_relu_max_pool2d(x, w, bias), unfused(x, w, bias))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": (16, 16)}, "255"),
        ({"pool_size": 5}, "too small"),
        ({"stride": 0}, "stride"),
        ({"bias": torch.zeros(4)}, "bias"),
    ],
)
def test_errors(arguments, words):
    x, w, _ = operands((1, 2, 6, 6), (3, 2, 3, 3), torch.float32)
    with Recorder() as recorder, pytest.raises(RuntimeError, match=words):
        conv_relu_max_pool2d(x, w, **arguments)
    assert not recorder.ours


def test_module_takes_a_convolutions_weights():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    block = torchconv.nn.ConvReLUMaxPool2d(3, 4, 3, padding=1)
    block.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(block(x), F.max_pool2d(F.relu(conv(x)), 2))
    assert "pool_size=2" in repr(block)


def test_compiles():
    tensors = [leaf(t) for t in operands((2, 2, 6, 6), (3, 2, 3, 3))]
    compiled = torch.compile(conv_relu_max_pool2d, fullgraph=True, backend="aot_eager", dynamic=True)
    y, expected = compiled(*tensors), conv_relu_max_pool2d(*tensors)
    g = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, tensors, g), torch.autograd.grad(expected, tensors, g))
