"""Modules and models through torch's compiler, and into files: torch.export, AOTInductor, ONNX."""

from typing import Any

import pytest
import torch
import torchvision
from support import ours, torchs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.testing import assert_close

import torchconv
from torchconv import nn
from torchconv.geometry import ConvGeometry, to_numbers
from torchconv.models import LeNet5

# Lazy modules are their classes to become once they have seen an input, which the compiler asks for.
MODULES = [name for name in nn.__all__ if name != "functional" and not name.startswith("Lazy")]


def module(name: str) -> torch.nn.Module:
    cls, rank = getattr(nn, name), int(name[-2])
    if "Conv" in name:
        return cls(4, 6, 3, padding=1)
    if "LP" in name:
        return cls(2, 2)
    if "Fractional" in name:
        return cls(2, output_size=(3,) * rank)
    return cls(2)


def inputs(name: str, larger: int) -> tuple[Tensor, ...]:
    rank = int(name[-2])
    x = torch.rand(2 + larger, 4, *(n + 2 * larger for n in (6, 8, 10)[:rank]))
    return torchs(f"max_pool{rank}d")(x, 2, return_indices=True) if "Unpool" in name else (x,)


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, True) for name in MODULES), *((name, False) for name in MODULES if "2d" in name)],
    ids=lambda value: value if isinstance(value, str) else "dynamic" if value else "static",
)
def test_modules_compile(name, dynamic):
    """One graph without breaks, forward and backward; one for all sizes where they are dynamic."""
    torch._dynamo.reset()
    original, counter = module(name), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(original, backend=counter, fullgraph=True)
    for larger in (0, 1) if dynamic else (0,):
        x, *rest = inputs(name, larger)
        if dynamic:
            for t in (x, *rest):
                torch._dynamo.mark_dynamic(t, (0, *range(2, t.dim())))
        results = []
        for each in (original, compiled):
            torch.manual_seed(0)  # of fractional pooling
            y = each(x.requires_grad_(), *rest)
            results.append((y, torch.autograd.grad(y.square().sum(), [x, *original.parameters()])))
        assert_close(results[1], results[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("fused", [False, True])
def test_inductor(fused):
    """The compiler that torch.compile uses by itself, which takes our operators as they are."""
    torch._dynamo.reset()
    model, x = LeNet5(fused=fused), torch.randn(2, 1, 28, 28)
    y = torch.compile(model, fullgraph=True)(x)
    assert_close(y, model(x))
    compiled, expected = (torch.autograd.grad(z.square().sum(), list(model.parameters())) for z in (y, model(x)))
    assert_close(compiled, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_memory_format_of_one_pixel(backend):
    """A gradient of one pixel is of both formats, and arrives in either: the input's gradient has the traced one."""
    torch._dynamo.reset()
    pool = nn.AdaptiveAvgPool2d(1)
    compiled = torch.compile(pool, backend=backend, fullgraph=True, dynamic=True)
    for format in (torch.channels_last, torch.contiguous_format):
        x = torch.rand(2, 4, 9, 11).to(memory_format=format).requires_grad_()
        actual, expected = (torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (compiled, pool))
        assert_close(actual, expected, check_stride=True)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target).split(".")[1] for node in program.graph.nodes if "torchconv" in str(node.target)]


def converted_resnet18() -> torch.nn.Module:
    model = torchvision.models.resnet18(num_classes=3)
    torchconv.convert(model)
    return model


@pytest.mark.parametrize(
    ("build", "size", "expected"),
    [
        (LeNet5, (1, 28, 28), {"conv_fprop": 2, "max_pool": 2}),
        (lambda: LeNet5(fused=True), (1, 28, 28), {"block_fprop": 2}),
        (converted_resnet18, (3, 33, 33), {"conv_fprop": 20, "max_pool": 1, "avg_pool": 1}),
    ],
    ids=["LeNet5", "LeNet5-fused", "resnet18"],
)
def test_export_to_a_file(build, size, expected, tmp_path):
    """What is loaded from there computes the same, of any batch size."""
    model, x = build().eval(), torch.randn(2, *size)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    names = operators(program)
    assert {name: names.count(name) for name in names} == expected
    torch.export.save(program, tmp_path / "model.pt2")
    x = torch.randn(5, *size)
    assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_training_an_exported_program(fused, compiled, tmp_path):
    """It calls the operators alone, which know their derivatives; loaded from a file, and compiled, as well."""
    model, x = LeNet5(fused=fused), torch.randn(3, 1, 28, 28)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    run = torch.compile(exported, backend="aot_eager", fullgraph=True) if compiled else exported

    def gradients(function, parameters):
        return dict(zip(parameters, torch.autograd.grad(function(x).square().sum(), list(parameters.values()))))

    expected = gradients(model, dict(model.named_parameters()))
    assert_close(gradients(run, dict(exported.named_parameters())), expected)


def test_derivatives_of_operators_alone():
    """Of every order, and in forward mode; without a graph where nobody asked for one."""
    geometry = to_numbers(ConvGeometry.of_conv((2, 3, 5, 5), (4, 3, 3, 3), 2, 1, 1, 1))
    x, w = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 5, 5), (4, 3, 3, 3)))

    def product(x, w):
        return torch.ops.torchconv.conv_fprop(x, w, None, geometry)

    assert torch.autograd.gradcheck(product, (x, w), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(product, (x, w), fast_mode=True)
    assert not product(x.detach(), w.detach()).requires_grad
    with torch.no_grad():
        assert not product(x, w).requires_grad
        with forward_ad.dual_level():
            y = product(forward_ad.make_dual(x, x), w)
            assert_close(forward_ad.unpack_dual(y).tangent, product(x, w))


def test_aot_inductor(tmp_path):
    """A compiled package; its process has to have imported this package, whose operators it calls."""
    model, x = LeNet5().eval(), torch.randn(2, 1, 28, 28)
    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(model, (x,)), package_path=str(tmp_path / "model.pt2")
    )
    assert_close(torch._inductor.aoti_load_package(path)(x), model(x))


def test_onnx(tmp_path):
    """ONNX has no operators of ours: a model goes there reverted to torch.nn's modules, and computes the same."""
    import onnx.reference

    model, x = torch.nn.Sequential(nn.Conv2d(1, 2, 3), torch.nn.ReLU(), nn.MaxPool2d(2)).eval(), torch.randn(1, 1, 8, 8)
    expected = model(x)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"torchconv\.conv_fprop"):
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    torchconv.revert(model)
    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    evaluator = onnx.reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    assert {"Conv", "MaxPool"} <= {node.op_type for node in program.model.graph}
    [y] = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    assert_close(torch.from_numpy(y), expected)


TRANSFORMS = {
    "compile of vmap": lambda f: torch.compile(torch.func.vmap(f), backend="aot_eager"),
    "vmap of compile": lambda f: torch.func.vmap(torch.compile(f, backend="aot_eager")),
    "compile of per-sample gradients": lambda f: torch.compile(
        torch.func.vmap(torch.func.grad(lambda x: f(x).sin().sum())), backend="aot_eager"
    ),
    "compile of jvp": lambda f: torch.compile(lambda x: torch.func.jvp(f, (x,), (x,))[1], backend="aot_eager"),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["conv2d", "max_pool2d"])
def test_transforms_and_compiler(name, transform):
    """Where they meet the graph breaks, and what is computed is the same."""
    torch._dynamo.reset()
    rest = (torch.randn(4, 3, 3, 3, dtype=torch.float64),) if name == "conv2d" else (2,)
    x = torch.randn(*(() if transform.endswith("jvp") else (2,)), 2, 3, 6, 5, dtype=torch.float64)
    expected, actual = (
        TRANSFORMS[transform](lambda x, f=function: f(x, *rest))(x) for function in (torchs(name), ours(name))
    )
    assert_close(actual, expected)
