"""Modules and models through torch's compiler, and into files: torch.export, AOTInductor, ONNX."""

from typing import Any

import pytest
import torch
import torchvision
from support import torchs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import torchconv
from torchconv import nn
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


def test_training_an_exported_program_warns():
    """An exported program calls the operators alone, which know no derivatives; torch says so rather than be silent."""
    model, x = LeNet5(), torch.randn(2, 1, 28, 28)
    exported = torch.export.export(model, (x,)).module()
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        exported(x).sum().backward()


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
