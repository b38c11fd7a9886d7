"""Which implementation runs CPU tensors, and what is said when it cannot."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import torchconv
from torchconv.backend import current_backend
from torchconv.eager import conv as eager_conv
from torchconv.eager import pool as eager_pool

PREAMBLE = """
import os, sys, torch
x, w = torch.randn(1, 1, 4, 4, requires_grad=True), torch.randn(1, 1, 3, 3, requires_grad=True)
"""
# Stands before every finder of modules, and hides Triton from them.
HIDE_TRITON = """
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a new process, in which only these of this package's and Triton's variables are set."""
    kept = {key: value for key, value in os.environ.items() if key not in ("TORCHCONV_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], env=kept | environment, capture_output=True, text=True, check=False
    )


def output_of(code: str, **environment: str) -> list[str]:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that are launched; here the eager functions stand for them, whatever this machine has."""
    called = []

    class Kernels:
        def __getattr__(self, name):
            called.append(name)
            return getattr(eager_conv, name.removeprefix("conv_")) if "conv" in name else getattr(eager_pool, name)

    for module in ("torchconv.backend", "torchconv.ops"):
        monkeypatch.setattr(sys.modules[module], "interpreted_kernels", Kernels)
    return called


def test_eager_by_default():
    assert current_backend() == "eager"
    assert output_of("""
import torchconv
torchconv.functional.conv2d(x, w).sum().backward()
print(torchconv.backend.__module__, "triton" in sys.modules, "triton_kernels" in sys.modules)
""") == ["torchconv.backend", "False", "False"]


def test_nests_and_restores(launches):
    with torchconv.backend("triton"):
        assert current_backend() == "triton"
        with torchconv.backend("eager"):
            assert current_backend() == "eager"
            with torchconv.backend("triton"):
                assert current_backend() == "triton"
            assert current_backend() == "eager"
        assert current_backend() == "triton"
    assert current_backend() == "eager"


def test_restores_after_an_error(launches):
    with pytest.raises(ZeroDivisionError), torchconv.backend("triton"):
        raise ZeroDivisionError
    assert current_backend() == "eager"


def test_belongs_to_its_thread(launches):
    seen = []
    with torchconv.backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["eager"]


@pytest.mark.parametrize("name", ["cuda", "", "Triton", None])
def test_unknown_name(name):
    context = torchconv.backend(name)
    with pytest.raises(ValueError, match=r"backend must be one of \('eager', 'triton'\)") as raised, context:
        pass
    assert repr(name) in str(raised.value)
    assert current_backend() == "eager"


def test_chooses_implementation_when_it_runs(launches):
    """A backward pass takes the backend that it runs in, not that of its forward pass."""
    x, w = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    F = torchconv.functional
    y = F.max_pool2d(F.conv2d(x, w), 2)
    assert launches == []
    with torchconv.backend("triton"):
        torch.autograd.grad(y.sum(), (x, w))
    assert sorted(launches) == ["conv_dgrad", "conv_wgrad", "max_pool_scatter"]
    launches.clear()
    with torchconv.backend("triton"):
        y = F.max_pool2d(F.conv2d(x, w), 2)
    assert launches == ["conv_fprop", "max_pool"]
    torch.autograd.grad(y.sum(), (x, w))
    assert launches == ["conv_fprop", "max_pool"]


def test_environment_variable():
    code = "from torchconv.backend import current_backend; print(current_backend())"
    assert output_of(code, TORCHCONV_BACKEND="triton") == ["triton"]
    failed = python(code, TORCHCONV_BACKEND="fast")
    assert failed.returncode != 0
    assert "ValueError: TORCHCONV_BACKEND must be one of ('eager', 'triton'), but got 'fast'" in failed.stderr


def test_interprets_without_preparation():
    """Nobody has imported Triton, so that the interpreter can still be chosen; with a GPU, kernels are compiled."""
    code = """
import torchconv
expected = torch.nn.functional.conv2d(x, w)
with torchconv.backend("triton"):
    y = torchconv.functional.conv2d(x, w)
    print(torch.allclose(y, expected, atol=1e-5), "triton" in sys.modules)
"""
    if torch.cuda.is_available():
        assert "TRITON_INTERPRET=1" in python(code).stderr
    else:
        assert output_of(code) == ["True", "True"]


def test_triton_compiles_in_this_process():
    failed = python("""
import triton, torchconv
y = torchconv.functional.conv2d(x, w)
with torchconv.backend("triton"):
    print("entered")
""")
    assert failed.returncode != 0
    assert "entered" not in failed.stdout
    assert "RuntimeError: backend 'triton'" in failed.stderr
    assert "TRITON_INTERPRET=1 before Python starts" in failed.stderr


def test_works_without_triton():
    """Everything but the kernels; and these say what is missing."""
    done = python(
        HIDE_TRITON
        + """
import torchconv
from torchconv import nn
F = torchconv.functional
F.avg_pool2d(F.max_pool2d(F.conv_transpose2d(F.conv2d(x, w), w), 2), 2).sum().backward()
print(tuple(x.grad.shape), nn.Conv2d(1, 2, 3)(x).shape[1], flush=True)
with torchconv.backend("triton"):
    print("entered")
"""
    )
    assert done.stdout.split() == ["(1,", "1,", "4,", "4)", "2"], done.stderr
    assert done.returncode != 0
    assert "RuntimeError: backend 'triton' needs Triton" in done.stderr
    assert "pip install triton" in done.stderr


def test_old_triton():
    """The kernels say what they need; the tensor algebra works."""
    done = python(
        """
import triton, torchconv
triton.__version__ = "3.4.0"
print(torchconv.functional.conv2d(x, w).dim(), flush=True)
with torchconv.backend("triton"):
    print("entered")
""",
        TRITON_INTERPRET="1",
    )
    assert done.stdout.split() == ["4"]
    assert "ImportError: the kernels need Triton 3.5 or newer" in done.stderr
    assert "this is Triton 3.4.0" in done.stderr
