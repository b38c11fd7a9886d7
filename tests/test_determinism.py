"""The same input gives the same bits, forward, backward and twice backward, in every function."""

import contextlib
import re
import threading

import pytest
import torch
from support import Recorder, example, leaf, on_paths, ours

from torchconv import functional
from torchconv.eager.precision import in_float32

NAMES = [name for name in functional.__all__ if not name.endswith("_with_indices")]
# Overlapping windows, several splits of a reduction, indices named twice: where an order of summation can differ.
FEW = ("conv2d", "conv_transpose2d", "conv_relu_max_pool2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def bits(name, tensors, arguments):
    """The result, its gradients, and the gradients of these."""
    leaves = {key: leaf(t) for key, t in tensors.items()}
    y = ours(name)(**leaves, **arguments)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape).requires_grad_()
    gradients = torch.autograd.grad(y, list(leaves.values()), g, create_graph=True)
    squares = sum(gradient.square().sum() for gradient in gradients)
    return [y, *gradients, torch.autograd.grad(squares, g)[0]]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("device", "name"), on_paths(NAMES, FEW), indirect=["device"])
def test_the_same_bits(device, name):
    """Torch's switch for deterministic algorithms is on: nothing that runs may refuse it."""
    tensors, arguments = example(name, device=device)
    for a, b in zip(bits(name, tensors, arguments), bits(name, tensors, arguments)):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "max_pool2d", "max_unpool2d", "adaptive_avg_pool2d"])
def test_the_same_bits_on_two_threads(name):
    """Big enough that torch shares the work out; the order of summation may depend on how many share it, no more."""
    torch.set_num_threads(2)
    try:
        tensors, arguments = example(name, larger=20)
        first = bits(name, tensors, arguments)
        for _ in range(3):
            for a, b in zip(first, bits(name, tensors, arguments)):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(1)


@pytest.fixture
def precision():
    """Reads torch's setting of what products of float32 may be rounded to on CPUs: here bfloat16."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is None:  # before torch 2.9
        torch.set_float32_matmul_precision("medium")
        yield torch.get_float32_matmul_precision
        torch.set_float32_matmul_precision("highest")
    else:
        before, setting.fp32_precision = setting.fp32_precision, "bf16"
        yield lambda: setting.fp32_precision
        setting.fp32_precision = before


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "conv_relu_max_pool2d"])
def test_precision_of_products_is_not_that_of_convolutions(name, precision):
    """Nor is torch's.  Where a CPU multiplies bfloat16 the bits would show it; elsewhere the setting itself does."""
    allowed, seen = precision(), []

    class Products(Recorder):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if re.search("mm|linear", operator.name()):
                seen.append(precision())
            return super().__torch_dispatch__(operator, types, args, kwargs)

    tensors, arguments = example(name, larger=20)
    with Products():
        actual = bits(name, tensors, arguments)
    assert seen
    assert allowed not in seen
    assert precision() == allowed
    for a, b in zip(actual, bits(name, {key: t.double() for key, t in tensors.items()}, arguments)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-4 * b.abs().max().item())


def test_precision_of_products_is_restored_by_the_last_thread(precision):
    """Also if the first to enter a convolution is the last to leave, and by an error."""
    allowed, entered, leave = precision(), threading.Event(), threading.Event()

    @in_float32
    def fail():
        entered.set()
        leave.wait(60)
        raise ValueError

    def attempt():
        with contextlib.suppress(ValueError):
            fail()

    thread = threading.Thread(target=attempt)
    thread.start()
    entered.wait(60)
    assert in_float32(precision)() != allowed
    assert precision() != allowed
    leave.set()
    thread.join()
    assert precision() == allowed


def test_unpooling_keeps_the_last_of_several():
    """Which of two windows writes a position that both name does not depend on chance, nor on the device."""
    index = torch.randint(0, 16, (3, 4, 8, 8))
    x = torch.randn(3, 4, 8, 8)
    expected = torch.zeros(12, 16)
    for row, (values, positions) in enumerate(zip(x.view(12, 64), index.view(12, 64))):
        for value, position in zip(values, positions):
            expected[row, position] = value
    y = functional.max_unpool2d(x, index, 1, output_size=(8, 8))
    assert torch.equal(y.view(12, 64)[:, :16], expected)
