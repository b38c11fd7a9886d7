"""Functions that a model calls, routed to this package's."""

import contextlib
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import Recorder, example, torchs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchconv
from torchconv import functional


@pytest.mark.parametrize("name", [name for name in functional.__all__ if hasattr(F, name)])
def test_override(name):
    """A call of torch's function runs this package's alone, forward and backward."""
    tensors, arguments = example(name, dtype=torch.float64)
    tensors = {key: t.requires_grad_() for key, t in tensors.items()}
    results = []
    for manager in (contextlib.nullcontext(), torchconv.override()):
        with Recorder() as recorder:
            with manager:
                y = torchs(name)(**tensors, **arguments)
            results.append((y, torch.autograd.grad(first(y).square().sum(), list(tensors.values()))))
        assert bool(recorder.ours) == (len(results) == 2)
    assert not recorder.forbidden
    assert_close(*results)


def first(y: Any) -> Tensor:
    return y[0] if isinstance(y, tuple) else y


# What torch offers beside torch.nn.functional.
TORCH = {
    "conv2d": lambda x, w, b: torch.conv2d(x, w, b, padding="same"),
    "conv_transpose2d": lambda x, w, b: torch.conv_transpose2d(x, w.transpose(0, 1), b, stride=2),
    "convolution": lambda x, w, b: torch.convolution(x, w, b, [2, 1], [1, 0], [1, 2], False, [0, 0], 1),
    "transposed convolution": lambda x, w, b: torch.convolution(
        x, w.transpose(0, 1), b, [2, 1], [1, 0], [1, 1], True, [1, 0], 1
    ),
    "conv_tbc": lambda x, w, b: torch.conv_tbc(x[0].movedim(0, 2), w[0].movedim(0, 1), b[0].expand(3), 1),
    "max_pool2d": lambda x, w, b: torch.max_pool2d(x, 2),
    "max_pool1d_with_indices": lambda x, w, b: torch.max_pool1d_with_indices(x[0], 2),
    "adaptive_max_pool1d": lambda x, w, b: torch.adaptive_max_pool1d(x[0], 2),
    "avg_pool1d": lambda x, w, b: torch.avg_pool1d(x[0], 2),
    "Conv2d": lambda x, w, b: torch.nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect").to(x)(x).detach() * 0,
    "MaxPool2d": lambda x, w, b: torch.nn.MaxPool2d(2, return_indices=True)(x),
}


@pytest.mark.parametrize("name", TORCH)
def test_override_of_what_torch_offers(name):
    x, w, b = torch.randn(2, 4, 6, 7), torch.randn(3, 4, 3, 3), torch.randn(3)
    expected = TORCH[name](x, w, b)
    with Recorder() as recorder, torchconv.override():
        actual = TORCH[name](x, w, b)
    assert recorder.ours
    assert not recorder.forbidden
    assert_close(actual, expected)


def test_override_routes_what_convert_leaves():
    class Own(torch.nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight - self.weight.mean(), self.bias)

    module, x = Own(2, 3, 3), torch.randn(1, 2, 5, 5)
    assert torchconv.convert(module).left
    with Recorder() as recorder, torchconv.override():
        module(x)
    assert recorder.ours == ["conv_fprop"]


def ran() -> list[str]:
    """What of this package a call of torch's function runs."""
    with Recorder() as recorder:
        F.avg_pool2d(torch.randn(1, 1, 3, 3), 2)
    return recorder.ours


def test_override_nests_and_belongs_to_its_thread():
    elsewhere: list[list[str]] = []
    with torchconv.override():
        with torchconv.override():
            assert ran() == ["avg_pool"]
        assert ran() == ["avg_pool"]
        thread = threading.Thread(target=lambda: elsewhere.append(ran()))
        thread.start()
        thread.join()
    assert (ran(), elsewhere) == ([], [[]])


def test_override_under_checkpointing():
    """As its docstring says: also what is computed anew, wherever the backward pass runs."""
    x, w = torch.randn(1, 1, 5, 5, requires_grad=True), torch.randn(1, 1, 3, 3, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return F.conv2d(x, w).sin()

    expected = torch.autograd.grad(f(x).sum(), (x, w))
    for around in (contextlib.nullcontext(), torchconv.override()):
        x.grad = w.grad = None
        y = checkpoint(f, x, use_reentrant=False, context_fn=lambda: (torchconv.override(), torchconv.override()))
        with Recorder() as recorder, around:
            y.sum().backward()
        assert recorder.ours[0] == "conv_fprop"
        assert not recorder.forbidden
        assert_close((x.grad, w.grad), expected)


def test_override_ends_when_an_error_is_raised():
    with pytest.raises(RuntimeError, match="expected 4D weight"), torchconv.override():
        F.conv2d(torch.randn(1, 1, 3, 3), torch.randn(1))
    assert ran() == []


def test_override_under_compile():
    x, w = torch.randn(2, 4, 6, 7), torch.randn(3, 4, 3, 3)
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, w: F.max_pool2d(F.conv2d(x, w), 2), backend=counted, fullgraph=True)
    expected = compiled(x, w)
    with torchconv.override():
        assert_close(compiled(x, w), expected)
    assert ["torchconv.conv_fprop" in graph.code for graph in counted.graphs] == [False, True]
