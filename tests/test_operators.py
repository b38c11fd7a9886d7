"""Which operators run; that nobody computes what nobody asked for; what torch's checks and its compiler say of them."""

import contextlib
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import CONV, CONV_TRANSPOSE, MAX_POOL, Recorder, example, laid_out, leaf, on_paths, ours
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import BaseTorchFunctionMode

import torchconv
from torchconv import functional, ops
from torchconv.geometry import PoolGeometry

FUNCTIONS = functional.__all__
ON_KERNELS = [name for name in FUNCTIONS if "2d" in name and "indices" not in name]
OPERATORS = sorted(
    name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("torchconv::")
)


def run(name: str, tensors: dict[str, Tensor], arguments: dict[str, object], order: int = 0, function=None) -> Tensor:
    """Call a function, and differentiate `order` times; the result of the last step."""
    y = (function or ours(name))(**tensors, **arguments)
    y = y[0] if isinstance(y, tuple) else y
    for step in range(order):
        # Of a sine: every derivative depends on all factors, and none is large.
        gradients = torch.autograd.grad(y.sin().sum(), list(tensors.values()), create_graph=step + 1 < order)
        y = sum(g.sin().sum() for g in gradients)
    return y


def call(name: str, layout: str = "contiguous", **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A small call of a function, its tensors being leaves."""
    tensors, arguments = example(name, **options)
    return {key: leaf(laid_out(t, layout) if t.dim() > 2 else t, t.device) for key, t in tensors.items()}, arguments


# Which operators run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "name"), on_paths(FUNCTIONS, ON_KERNELS), indirect=["device"])
def test_no_other_convolution_or_pooling_runs(device, name):
    """Forward, backward and double backward run operators of this package, and no convolution or pooling of aten's."""
    tensors, arguments = call(name, device=device)
    with Recorder() as recorder:
        run(name, tensors, arguments, order=2)
    assert recorder.ours
    assert not recorder.forbidden
    assert len(recorder.names) > 2 * len(recorder.ours)  # it has looked inside


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "relu" not in name])
def test_recorder_sees_torchs(name):
    """What the test above would record if torch did the work."""
    tensors, arguments = call(name)
    with Recorder() as recorder:
        run(name, tensors, arguments, order=1, function=getattr(F, name))
    assert len(recorder.forbidden) >= (1 if "unpool" in name else 2)  # forward and backward; unpooling's is a gather
    assert not recorder.ours


def test_recorder_sees_inside_operators():
    """An operator that quietly calls torch's convolution is caught."""
    library = torch.library.Library("torchconv_test", "DEF")
    library.define("sly(Tensor x, Tensor w) -> Tensor")
    library.impl("sly", F.conv2d, "CPU")
    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 2, 2)
    with Recorder() as recorder:
        torch.ops.torchconv_test.sly(x, w)
    assert recorder.names[0] == "torchconv_test::sly"
    assert any("aten::conv" in name for name in recorder.forbidden)
    library._destroy()


# What is computed, and what is kept ----------------------------------------------------------------------------------

# For each function, the operators of its forward pass, of its input's gradient and of its weight's.
PRODUCTS = dict.fromkeys(CONV, ("conv_fprop", "conv_dgrad", "conv_wgrad")) | dict.fromkeys(
    CONV_TRANSPOSE, ("conv_dgrad", "conv_fprop", "conv_wgrad")
)


@pytest.mark.parametrize(
    "asked", [(), ("bias",), ("input",), ("weight",), ("input", "weight"), ("input", "weight", "bias")]
)
@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_that_nobody_asked_for(name, asked):
    tensors, arguments = call(name)
    tensors = {key: t.requires_grad_(key in asked) for key, t in tensors.items()}
    with Recorder() as recorder:
        y = ours(name)(**tensors, **arguments)
        if asked:
            y.sum().backward()
    forward, of_input, of_weight = PRODUCTS[name]
    expected = [forward] + [of_input] * ("input" in asked) + [of_weight] * ("weight" in asked)
    assert recorder.ours == expected
    assert all((t.grad is not None) == (key in asked) for key, t in tensors.items())


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_backward_without_gradients(name):
    """The double backward pass of a loss in which the first gradient is constant runs nothing more."""
    tensors, arguments = call(name)
    y = ours(name)(**tensors, **arguments)
    (gradient,) = torch.autograd.grad(y.sum(), tensors["input"], create_graph=True)
    with Recorder() as recorder:
        (second,) = torch.autograd.grad(gradient.sum(), tensors["weight"])
    assert recorder.ours == ["conv_wgrad"]
    assert second.shape == tensors["weight"].shape


def saved(name: str, asked: tuple[str, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    """Shape and type of what the forward pass keeps for the backward pass."""
    kept = []

    def pack(t: Tensor) -> Tensor:
        kept.append((t.shape, t.dtype))
        return t

    tensors, arguments = call(name)
    tensors = {key: t.requires_grad_(key in asked) for key, t in tensors.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ours(name)(**tensors, **arguments)
    return kept


@pytest.mark.parametrize("name", PRODUCTS)
def test_factors_kept_for_backward(name):
    """A factor is kept for the other one's gradient alone."""
    shapes = {key: t.shape for key, t in example(name)[0].items()}
    assert saved(name, ("bias",)) == []
    assert saved(name, ("input",)) == [(shapes["weight"], torch.float32)]
    assert saved(name, ("weight", "bias")) == [(shapes["input"], torch.float32)]
    assert len(saved(name, ("input", "weight", "bias"))) == 2


@pytest.mark.parametrize("name", MAX_POOL)
def test_one_byte_per_window_kept_for_backward(name):
    tensors, arguments = example(name)
    y = ours(name)(**tensors, **arguments)
    assert saved(name, ("input",)) == [(y.shape, torch.uint8)]


WITH_WINNERS = [*MAX_POOL, "fractional_max_pool2d", "conv_relu_max_pool2d"]


@pytest.mark.parametrize("name", WITH_WINNERS)
def test_winners_get_no_gradient(name):
    """Not even zeros, which torch would otherwise make for every output."""
    tensors, arguments = call(name)
    y = ours(name)(**tensors, **arguments)
    y.sum().backward(retain_graph=True)  # what is kept for a geometry is made by now
    with Recorder() as recorder:
        y.backward(torch.ones_like(y))
    assert recorder.ours
    assert not [name for name in recorder.names if name.startswith("aten::zeros")]


@pytest.mark.parametrize("name", WITH_WINNERS)
def test_gradient_that_is_none(name):
    """A Function behind ours may say that there is no gradient."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            return t.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> None:
            return None

    tensors, arguments = call(name)
    Stop.apply(ours(name)(**tensors, **arguments)).sum().backward()
    assert all(t.grad is None for t in tensors.values())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "avg" in name])
def test_averages_keep_nothing_for_backward(name):
    assert saved(name, ("input",)) == []


# What torch says of the operators ------------------------------------------------------------------------------------


@functools.cache
def recorded_calls(layout: str, rank: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """One call of every operator for every function that uses it, as that function makes it."""
    calls = {}
    for name in FUNCTIONS:
        if f"{rank}d" in name:
            tensors, arguments = call(name, layout)
            with torchconv.backend("eager"), Recorder() as recorder:
                run(name, tensors, arguments, order=2)
            for operator, args in recorder.calls:
                if operator.namespace == "torchconv":
                    detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
                    calls[name.split("_")[0], operator] = (operator, detached)
    return list(calls.values())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_opcheck(rank, layout):
    """Schemas, shapes and strides of traced tensors, and dispatch through AOTAutograd, as torch.library checks them."""
    calls = recorded_calls(layout, rank)
    if rank == 2:  # fractional pooling and blocks have no other
        assert sorted({operator._opname for operator, _ in calls}) == OPERATORS
    for operator, args in calls:
        torch.library.opcheck(operator, args)


@pytest.mark.parametrize(("device", "operator"), on_paths(OPERATORS, OPERATORS), indirect=["device"])
def test_traced_shape_is_the_real_one(device, operator):
    """Shape, type and strides of every result, in both memory formats."""
    for layout in ("contiguous", "channels_last"):
        overload, args = next(call for call in recorded_calls(layout, 2) if call[0]._opname == operator)
        results = []
        for place in (device, "meta"):
            result = overload(*(a.to(place) if isinstance(a, Tensor) else a for a in args))
            results.append(
                [(t.shape, t.dtype, t.stride()) for t in ((result,) if isinstance(result, Tensor) else result)]
            )
        assert results[0] == results[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles(name):
    """One graph without breaks, and torch's compiler differentiates it."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda tensors, arguments: ours(name)(**tensors, **arguments), backend=counter, fullgraph=True
    )
    tensors, arguments = call(name)
    expected, y = ours(name)(**tensors, **arguments), compiled(tensors, arguments)
    y, expected = (t[0] if isinstance(t, tuple) else t for t in (y, expected))
    g = torch.randn_like(y)
    values = list(tensors.values())
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, values, g), torch.autograd.grad(expected, values, g))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_for_any_batch_and_image(name):
    """One graph serves every batch and image size; it is an error here if tracing fixes one of them."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda tensors, arguments: ours(name)(**tensors, **arguments), backend=counter, fullgraph=True
    )
    # Adaptive windows are regular or not, and their longest is one or two longer, by the remainder of the sizes.
    for larger in (0, 6) if "adaptive" in name else (0, 1, 4):
        tensors, arguments = call(name, larger=larger)
        for key, t in (tensors | arguments).items():
            if key in ("input", "indices", "_random_samples"):
                torch._dynamo.mark_dynamic(t, 0 if key == "_random_samples" else (0, *range(2, t.dim())))
        expected, y = ours(name)(**tensors, **arguments), compiled(tensors, arguments)
        y, expected = (t[0] if isinstance(t, tuple) else t for t in (y, expected))
        values = list(tensors.values())
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.pow(2).sum(), values), torch.autograd.grad(expected.pow(2).sum(), values)
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["conv2d", "conv_relu_max_pool2d"])
def test_compiles_for_any_kernel(name):
    """Also where the backward pass has no tensor of the kernel's size: padding 'same', and no gradient of the input."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, w: ours(name)(x, w, padding="same"), backend=counter, fullgraph=True, dynamic=True
    )
    for kernel in ((3, 2), (2, 5)):
        x, w = torch.randn(5, 4, 7, 8), torch.randn(6, 4, *kernel, requires_grad=True)
        expected, y = ours(name)(x, w, padding="same"), compiled(x, w)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(t.sin().sum(), w) for t in (y, expected)))
    assert counter.frame_count == 1


# Who sees a call of an operator --------------------------------------------------------------------------------------


@pytest.fixture
def dispatched(monkeypatch) -> list[object]:
    """The geometries that have gone through the dispatcher, as integers."""
    seen = []
    numbers = ops._numbers
    monkeypatch.setattr(ops, "_numbers", lambda geometry: seen.append(geometry) or numbers(geometry))
    return seen


class Plain(Tensor):
    """A subclass, which may do something of its own at every call."""


WATCHERS = {
    "dispatch mode": Recorder,
    "function mode": BaseTorchFunctionMode,
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "old profiler": torch.autograd.profiler.profile,
    "autocast": lambda: torch.autocast("cpu"),
}


@pytest.mark.parametrize("name", ON_KERNELS)
def test_kernel_is_called_straight(name, dispatched):
    """On the CPU, where nobody stands between: forward, backward and double backward."""
    tensors, arguments = call(name)
    run(name, tensors, arguments, order=2)
    assert not dispatched


@pytest.mark.parametrize("watcher", WATCHERS)
def test_watchers_see_the_operator(watcher, dispatched):
    tensors, arguments = call("max_pool2d")
    expected = ours("max_pool2d")(**tensors, **arguments)
    with WATCHERS[watcher]():
        y = ours("max_pool2d")(**tensors, **arguments)
    assert len(dispatched) == 1
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (lambda t: t.as_subclass(Plain), 1),
        (torch._neg_view, 0),
        (lambda t: torch._efficientzerotensor(t.shape), 0),
        (lambda t: t.to("meta"), 1),
        (lambda t: t.requires_grad_() * 1, 0),
        (torch.nn.Parameter, 0),
    ],
    ids=["subclass", "negative", "zero", "meta", "requires grad", "parameter"],
)
def test_subclasses_and_devices_go_through_the_dispatcher(kind, times, dispatched):
    x = kind(torch.randn(1, 2, 4, 4))
    y = ours("avg_pool2d")(x, 2)
    assert len(dispatched) == times
    if not y.is_meta:
        torch.testing.assert_close(y.detach(), F.avg_pool2d(x, 2).detach())


@pytest.mark.parametrize(("device", "name"), on_paths(ON_KERNELS), indirect=["device"])
def test_negative_views(device, name):
    """Whose elements are not what lies in memory, which kernels read."""
    tensors, arguments = call(name, device=device)
    negated = {key: (-t.detach()).requires_grad_() for key, t in tensors.items()}
    views = {key: torch._neg_view(t.detach()).requires_grad_() for key, t in tensors.items()}
    torch.testing.assert_close(run(name, views, arguments, order=2), run(name, negated, arguments, order=2))


@pytest.mark.parametrize("layout", [Tensor.to_sparse, Tensor.to_mkldnn])
def test_layouts_without_strides_are_refused(layout):
    with pytest.raises(NotImplementedError, match="Could not run 'torchconv::avg_pool'"):
        ours("avg_pool2d")(layout(torch.randn(1, 2, 4, 4)), 2)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_traces_see_the_operator(pre_dispatch):
    x = torch.randn(1, 2, 4, 4)
    graph = make_fx(lambda x: ours("avg_pool2d")(x, 2), pre_dispatch=pre_dispatch)(x).graph
    assert torch.ops.torchconv.avg_pool.default in [node.target for node in graph.nodes]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_scripts_hold_the_operator():
    geometry = PoolGeometry.of_pool((1, 2, 4, 4), 2, 2, None, 0, 1, False)
    traced = torch.jit.trace(lambda x: ops.max_pool(x, geometry)[0], torch.randn(1, 2, 4, 4))
    assert "torchconv::max_pool" in str(traced.graph)


@contextlib.contextmanager
def functionalization():
    """What a plain tensor does not show, but any that is made inside."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def test_nothing_of_functionalization_is_kept(dispatched):
    geometry = PoolGeometry.of_pool((1, 2, 7, 7), 2, 3, 2, 1, 1, False)
    x = torch.randn(1, 2, 7, 7)
    with functionalization():
        ops.max_pool(x, geometry)
    torch.func.functionalize(lambda t: ops.max_pool(x, geometry)[0] + t)(torch.ones(()))
    assert len(dispatched) == 2
    assert not torch._is_functional_tensor(ops.max_pool(x, geometry)[0])


def test_inference_mode(dispatched):
    x, w = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    with torch.inference_mode():
        y = ours("conv2d")(x, w)
    assert y.is_inference()
    assert not dispatched
    assert torch.equal(y, ours("conv2d")(x, w))
