"""What of PyTorch works around the modules and functions: mixed precision, hooks, checkpoints, sharding, counters, …"""

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
import torchvision
from support import HALF, Recorder, example, ours, torchs
from torch import Tensor
from torch.nn.utils import fusion, parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import torchconv
from torchconv import functional, nn

FUNCTIONS = [name for name in functional.__all__ if hasattr(F, name)]


def pair() -> tuple[torch.nn.Sequential, torch.nn.Sequential, Tensor]:
    """A model on torch.nn, the same on this package, and an input."""
    models = [
        torch.nn.Sequential(
            namespace.Conv2d(2, 4, 3, padding=1),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(inplace=True),
            namespace.MaxPool2d(2),
            namespace.ConvTranspose2d(4, 2, 2),
            namespace.AvgPool2d(2),
        )
        for namespace in (torch.nn, nn)
    ]
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1], torch.randn(3, 2, 8, 8)


def gradients(model: torch.nn.Module, x: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = model(x) if run is None else run(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


# Mixed precision ------------------------------------------------------------------------------------------------------


def mixed(
    function: Callable[..., Any], device: str, name: str, dtype: torch.dtype, low: torch.dtype
) -> list[torch.dtype]:
    """Types of the result and of the gradients, under autocast to `low`."""
    torch.manual_seed(0)
    tensors, arguments = example(name, dtype=dtype, device=device)
    tensors = {key: t.requires_grad_() for key, t in tensors.items()}
    with torch.autocast(device, dtype=low):
        y = function(**tensors, **arguments)
    y = y[0] if isinstance(y, tuple) else y
    return [y.dtype, *(g.dtype for g in torch.autograd.grad(y.sum(), list(tensors.values())))]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast(name, dtype):
    """The result has the type that torch's has, of each type of input; a gradient that of its leaf."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for low in HALF:
            assert mixed(ours(name), device, name, dtype, low) == mixed(torchs(name), device, name, dtype, low)


def test_which_poolings_autocast_widens():
    """The list of torch's that the test above can only see on the device that there is: none on GPUs."""
    widened = functional.arguments._FLOAT32_UNDER_AUTOCAST
    for name in FUNCTIONS:
        kernels = {
            key: any(
                torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{aten}", key)
                for aten in (name, f"{name}.input", name.replace("lp_", "avg_"), name.replace("unpool1d", "unpool2d"))
                if torch._C._dispatch_has_kernel(f"aten::{aten}")
            )
            for key in ("AutocastCPU", "AutocastCUDA")
        }
        if not name.endswith("_with_indices"):
            assert kernels == {"AutocastCPU": "conv" in name or name in widened, "AutocastCUDA": "conv" in name}, name


def test_autocast_of_the_block():
    block, x = nn.ConvReLUMaxPool2d(2, 4, 3), torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x)
    y.sum().backward()
    assert (y.dtype, block.weight.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["conv2d", "avg_pool3d"])
def test_autocast_under_compile(name):
    """Autocast outside and inside of what is compiled: types and values of results and gradients are the eager ones."""
    tensors, arguments = example(name)
    values = [t.requires_grad_() for t in tensors.values()]

    def inside() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours(name)(**tensors, **arguments)

    def outside() -> Tensor:
        return ours(name)(**tensors, **arguments)

    expected = inside()
    for function, around in ((inside, contextlib.nullcontext()), (outside, torch.autocast("cpu", torch.bfloat16))):
        torch._dynamo.reset()
        with around:
            y = torch.compile(function, fullgraph=True, backend="aot_eager")()
        assert_close(y, expected)
        assert_close(*(torch.autograd.grad(t.sum(), values, retain_graph=True) for t in (y, expected)))


def test_grad_scaler():
    """A step that overflows is skipped, as torch.nn's is, and the others are the same."""
    theirs, mine, x = pair()
    for model in (theirs, mine):
        optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, float("inf"), 1.0):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(x).float().square().mean() * factor
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 4.0
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert_close(a, b, rtol=0.02, atol=0.02)


# States, copies, parametrisations -------------------------------------------------------------------------------------


def test_state_dict_both_ways():
    theirs, mine, x = pair()
    theirs.load_state_dict(mine.state_dict())
    assert list(theirs.state_dict()) == list(mine.state_dict())
    assert_close(gradients(mine, x), gradients(theirs, x), rtol=1e-4, atol=1e-4)
    assert_close(copy.deepcopy(mine)(x), mine(x))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised(norm):
    theirs, mine, x = pair()
    for model in (theirs, mine):
        torch.manual_seed(1)
        norm(model[0]), norm(model[4])
    assert isinstance(mine[0], nn.Conv2d)
    assert_close(gradients(mine, x), gradients(theirs, x), rtol=1e-4, atol=1e-4)


def test_fusion_with_batch_normalisation():
    _, mine, x = pair()
    mine(x)
    fused = fusion.fuse_conv_bn_eval(mine[0].eval(), mine[1].eval())
    assert type(fused) is nn.Conv2d
    assert_close(fused(x), mine[1](mine[0](x)))


# Hooks, checkpoints, functional calls ---------------------------------------------------------------------------------


def test_hooks():
    """Each module's hooks see what torch.nn's see, forward and backward."""
    seen: dict[int, list[Any]] = {}
    theirs, mine, x = pair()
    for which, model in enumerate((theirs, mine)):
        log = seen.setdefault(which, [])
        model[2].inplace = False
        for module in model:
            module.register_forward_pre_hook(lambda _, args, log=log: log.append(args[0]))
            module.register_forward_hook(lambda _, args, y, log=log: log.append(y))
            module.register_full_backward_pre_hook(lambda _, g, log=log: log.append(g[0]))
            module.register_full_backward_hook(lambda _, gx, g, log=log: log.append(gx[0]))
        gradients(model, x)
    assert len(seen[0]) == 4 * len(theirs)
    assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    _, mine, x = pair()
    with Recorder() as recorder:
        kept = gradients(mine, x, lambda x: checkpoint(mine, x, use_reentrant=reentrant)) if not reentrant else None
    if reentrant:  # which does not go with autograd.grad
        expected = gradients(mine, x)
        checkpoint(mine, x.requires_grad_(), use_reentrant=True).square().sum().backward()
        assert_close([x.grad, *(p.grad for p in mine.parameters())], expected[1:])
    else:
        assert recorder.ours.count("conv_fprop") == 3  # one of them the gradient of the transposed convolution
        assert_close(kept, gradients(mine, x))


def test_saved_tensor_hooks():
    """What is kept for the backward pass may live elsewhere in between."""
    _, mine, x = pair()
    expected = gradients(mine, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        y = mine(x.requires_grad_())
    assert_close(torch.autograd.grad(y.square().sum(), [x, *mine.parameters()]), tuple(expected[1:]))
    with torch.autograd.graph.save_on_cpu():
        assert_close(gradients(mine, x.detach()), expected)


def test_functional_call():
    """Per-sample gradients, of other parameters than the module's own."""
    theirs, mine, x = (each.eval() if isinstance(each, torch.nn.Module) else each for each in pair())
    values = {key: p.detach() + 1 for key, p in mine.named_parameters()}

    def loss(model: torch.nn.Module) -> Callable[..., Tensor]:
        return lambda values, x: torch.func.functional_call(model, values, (x[None],)).square().sum()

    for model in (theirs, mine):
        model[2].inplace = False
    one, other = (torch.func.vmap(torch.func.grad(loss(model)), (None, 0))(values, x) for model in (theirs, mine))
    assert_close(other, one, rtol=1e-4, atol=1e-3)


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel():
    theirs, mine, x = pair()
    expected = gradients(theirs, x)
    parallel = torch.nn.parallel.DistributedDataParallel(mine)
    parallel(x).square().sum().backward()
    assert_close([p.grad for p in mine.parameters()], expected[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("process_group")
def test_fully_sharded_data_parallel():
    """Each module is sharded by itself; what `convert` changes may be sharded before or after."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    theirs, _, x = pair()
    expected = gradients(theirs, x)
    for convert_first in (True, False):
        model, mesh = copy.deepcopy(theirs), init_device_mesh("cpu", (1,))
        if convert_first:
            torchconv.convert(model)
        for module in (model[0], model[4], model):
            fully_shard(module, mesh=mesh)
        if not convert_first:
            assert list(torchconv.convert(model).done) == ["0", "3", "4", "5"]
        assert isinstance(model[0], nn.Conv2d)
        model(x).square().sum().backward()
        assert_close([p.grad.full_tensor() for p in model.parameters()], expected[2:], rtol=1e-4, atol=1e-4)


# Counters -------------------------------------------------------------------------------------------------------------


def flops(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Of the forward pass, and with the backward pass."""
    with FlopCounterMode(display=False) as counter:
        y = run()
        forward = counter.get_total_flops()
        y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"])
def test_flops_of_convolutions(name, options):
    rank = int(name[-2])
    channels = (3, 5) if "transpose" in name else (5, 3)
    x, w = (torch.randn(size, requires_grad=True) for size in ((2, 3, *(9, 8, 7)[:rank]), (*channels, *[3] * rank)))
    assert flops(lambda: ours(name)(x, w, **options)) == flops(lambda: torchs(name)(x, w, **options))


def test_flops_of_groups():
    """torch 2.14 counts the gradients of grouped convolutions as if they had no groups; here they have."""
    x, w = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(8, 2, 3, 3, requires_grad=True)
    product = 2 * 2 * 8 * 2 * (3 * 3) * (3 * 3)
    assert flops(lambda: functional.conv2d(x, w, groups=2)) == (product, 3 * product)


def test_flops_of_models():
    """The block's are those of its convolution; a ResNet's are torch's."""
    x = torch.randn(2, 1, 28, 28)
    lenet, fused = torchconv.models.LeNet5(), torchconv.models.LeNet5(fused=True)
    assert flops(lambda: lenet(x)) == flops(lambda: fused(x))
    resnet, x = torchvision.models.resnet18(num_classes=3), torch.randn(1, 3, 33, 33)
    expected = flops(lambda: resnet(x))
    torchconv.convert(resnet)
    assert flops(lambda: resnet(x)) == expected


def test_profiler():
    """The operators, and the Functions that call them, bear names that say what they are."""
    _, mine, x = pair()
    with torch.profiler.profile() as profile:
        mine(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert names > {
        "torchconv::conv_fprop",
        "torchconv::conv_wgrad",
        "torchconv::conv_dgrad",
        "torchconv::max_pool",
        "torchconv::max_pool_scatter",
        "torchconv::avg_pool",
        "torchconv::avg_pool_grad",
        "ConvBackward",
        "MaxPoolBackward",
        "AvgPoolBackward",
    }


# Devices and types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", functional.__all__)
def test_meta_device(name):
    """Shapes without data, forward and backward."""
    tensors, arguments = example(name)
    expected = ours(name)(**tensors, **arguments)
    tensors = {key: t.to("meta").requires_grad_() for key, t in tensors.items()}
    arguments = {key: t.to("meta") if isinstance(t, Tensor) else t for key, t in arguments.items()}
    y = ours(name)(**tensors, **arguments)
    for a, b in zip(*(each if isinstance(each, tuple) else (each,) for each in (y, expected))):
        assert (a.shape, a.dtype, a.stride(), a.device.type) == (b.shape, b.dtype, b.stride(), "meta")
    first = y[0] if isinstance(y, tuple) else y
    for g, t in zip(torch.autograd.grad(first.sum(), list(tensors.values())), tensors.values()):
        assert (g.shape, g.device.type) == (t.shape, "meta")


def test_modules_on_the_meta_device():
    with torch.device("meta"):
        model = torchconv.models.LeNet5()
        assert model(torch.empty(2, 1, 28, 28)).shape == (2, 10)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.fixture
def other_defaults():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", functional.__all__)
def test_defaults_of_device_and_type(name, request):
    """They are for what a caller makes: what a function makes is where its input is, and of its type."""
    tensors, arguments = example(name)
    tensors = {key: t.requires_grad_() for key, t in tensors.items()}

    def run() -> tuple[Any, ...]:
        y = ours(name)(**tensors, **arguments)
        return y, torch.autograd.grad((y[0] if isinstance(y, tuple) else y).sum(), list(tensors.values()))

    expected = run()
    request.getfixturevalue("other_defaults")
    actual = run()
    request.getfixturevalue("other_defaults")
    torch.set_default_device(None)
    assert_close(actual, expected)


@pytest.mark.usefixtures("other_defaults")
def test_defaults_of_modules():
    module = nn.Conv2d(1, 1, 3)
    assert (module.weight.dtype, module.weight.device.type) == (torch.float64, "meta")


def test_results_may_be_changed_in_place():
    """As in models whose ReLU works in place."""
    for name in functional.__all__:
        tensors, arguments = example(name)
        tensors = {key: t.requires_grad_() for key, t in tensors.items()}
        y = ours(name)(**tensors, **arguments)
        y = y[0] if isinstance(y, tuple) else y
        expected = torch.autograd.grad((2 * y).square().sum(), list(tensors.values()), retain_graph=True)
        assert_close(torch.autograd.grad(y.mul_(2).square().sum(), list(tensors.values())), expected)


# What does not work, and says so --------------------------------------------------------------------------------------


def test_torchscript():
    """torch deprecates TorchScript; modules go to it as torch.nn's."""
    _, mine, x = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((RuntimeError, torch.jit.frontend.FrontendError)):
            torch.jit.script(mine)
        expected = mine(x)
        torchconv.revert(mine)
        assert_close(torch.jit.script(mine)(x), expected, rtol=1e-4, atol=1e-4)


def test_symbolic_tracing():
    """torch.fx traces through modules that are not torch.nn's, into checks of tensors: first trace, then convert."""
    theirs, mine, x = (each.eval() if isinstance(each, torch.nn.Module) else each for each in pair())
    with pytest.raises(TypeError, match="must be Tensor, not Proxy"):
        torch.fx.symbolic_trace(mine)
    traced, expected = torch.fx.symbolic_trace(theirs), theirs(x)
    torchconv.convert(traced)
    with Recorder() as recorder:
        assert_close(traced(x), expected, rtol=1e-4, atol=1e-4)
    assert recorder.ours == ["conv_fprop", "max_pool", "conv_dgrad", "avg_pool"]
