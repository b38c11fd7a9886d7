"""The repaired interpreter computes bfloat16 and TF32 as a GPU does, or refuses to."""

import pytest
import torch
import triton
import triton.language as tl

from triton_kernels import INTERPRETED

if not INTERPRETED:
    pytest.skip("kernels are compiled in this process", allow_module_level=True)

from triton.runtime import interpreter as upstream

from triton_kernels import interpreter


@pytest.fixture(autouse=True)
def repaired():
    interpreter.repair()


@triton.jit
def copy(p_x, p_y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(p_y + i, tl.load(p_x + i).to(p_y.dtype.element_ty))


@triton.jit
def multiply(p_a, p_b, p_y, PRECISION: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(p_y + i, tl.dot(tl.load(p_a + i), tl.load(p_b + i), input_precision=PRECISION))


@triton.jit
def arithmetic(p_a, p_b, p_y, N: tl.constexpr):
    """Each operation by itself on bfloat16, compared and reduced too."""
    i = tl.arange(0, N)
    a, b = tl.load(p_a + i), tl.load(p_b + i)
    tl.store(p_y + i, a - b)
    tl.store(p_y + N + i, a / b)
    tl.store(p_y + 2 * N + i, tl.fma(a, b, a))
    tl.store(p_y + 3 * N + i, tl.maximum(a, b))
    tl.store(p_y + 4 * N + i, tl.abs(a))
    tl.store(p_y + 5 * N + i, (a <= b).to(tl.bfloat16))
    tl.store(p_y + 6 * N + i, a * 0 + tl.max(b, axis=0))
    tl.store(p_y + 7 * N + i, a * 0.0 + tl.sum((a <= b).to(tl.bfloat16), axis=0))
    tl.store(p_y + 8 * N + i, tl.clamp(a, -0.5, 0.5))
    tl.store(p_y + 9 * N + i, a.to(tl.int32).to(tl.bfloat16))


@triton.jit
def add_atomically(p_x, BLOCK: tl.constexpr):
    tl.atomic_add(p_x + tl.arange(0, BLOCK), 1.0)


def test_bfloat16_casts_round_to_nearest_even_once():
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, 1e-40, -1e-45, 1.0])
    # 1 + 2⁻⁸ is half-way between two bfloat16 numbers; a hair more rounds up, but not if float32 lost the hair.
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40], dtype=torch.float64)
    many = torch.cat([special.double(), halfway, torch.randn(4096 - 13, dtype=torch.float64)])
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, y = many.to(dtype), torch.empty(4096, dtype=torch.bfloat16)
        copy[(1,)](x, y, BLOCK=4096)
        expected = x.bfloat16()
        if dtype is torch.float64:
            # torch goes through float32, and rounds twice.
            expected[11:13] = torch.tensor([1 + 2**-7, 1], dtype=torch.bfloat16)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # a signalling NaN
def test_bfloat16_widens_exactly():
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        y = torch.empty(2**16, dtype=dtype)
        copy[(1,)](x, y, BLOCK=2**16)
        torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_bfloat16_arithmetic():
    a, b = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    y = torch.empty(10, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](a, b, y, N=64)
    full = torch.ones(64, dtype=torch.bfloat16)
    expected = [
        a - b,
        a / b,
        (a.double() * b.double() + a.double()).bfloat16(),
        torch.maximum(a, b),
        a.abs(),
        (a <= b).bfloat16(),
        full * b.max(),
        full * (a <= b).sum(),
        a.clamp(-0.5, 0.5),
        a.int().bfloat16(),
    ]
    for step, (got, want) in enumerate(zip(y, expected)):
        assert torch.equal(got, want), f"step {step}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot(dtype):
    a, b = torch.randn(32, 32).to(dtype), torch.randn(32, 32).to(dtype)
    y = torch.empty(32, 32)
    multiply[(1,)](a, b, y, PRECISION="ieee", N=32)
    torch.testing.assert_close(y, (a.double() @ b.double()).to(y.dtype), rtol=1e-5, atol=1e-5)


def test_dot_rounds_to_tf32_where_asked():
    a, b = torch.randn(32, 32), torch.randn(32, 32)
    a[0, 0] = 1 + 2**-11  # half-way between two TF32 numbers
    exact, rounded = torch.empty(32, 32), torch.empty(32, 32)
    multiply[(1,)](a, b, exact, PRECISION="ieee", N=32)
    multiply[(1,)](a, b, rounded, PRECISION="tf32", N=32)
    torch.testing.assert_close(rounded, _tf32(a) @ _tf32(b), rtol=1e-5, atol=1e-5)
    error = (rounded - exact).abs().max()
    assert 1e-4 < error < 32**0.5 * 2**-10 * 4


def test_tf32_keeps_what_is_not_finite():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 3.4028235e38])
    got = torch.from_numpy(interpreter.to_tf32(x.numpy()))
    expected = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, float("inf")])
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_another_triton_refuses_bfloat16_and_runs_the_rest(monkeypatch):
    """An interpreter that the repair does not fit: its casts truncate."""
    monkeypatch.setattr(upstream, "_implicit_cvt", upstream._implicit_cvt)
    monkeypatch.setattr(upstream.InterpretedFunction, "_repaired", False)
    monkeypatch.setattr(interpreter, "narrow", lambda x: (x.astype("float32").view("uint32") >> 16).astype("uint16"))
    interpreter.repair()
    x = torch.randn(16)
    with pytest.raises(NotImplementedError, match=rf"Triton {triton.__version__}.*bfloat16 .*cast"):
        copy[(1,)](x, torch.empty(16, dtype=torch.bfloat16), BLOCK=16)
    y = torch.empty(16, dtype=torch.float64)
    copy[(1,)](x, y, BLOCK=16)
    assert torch.equal(y, x.double())


def test_unrepaired_operations_are_refused():
    with pytest.raises(Exception, match=r"create_atomic_rmw on bfloat16|atomic_add does not support bf16"):
        add_atomically[(1,)](torch.zeros(16, dtype=torch.bfloat16), BLOCK=16)


def _tf32(x):
    bits = (x.view(torch.int32).long() + 0x1000) & ~0x1FFF
    return bits.to(torch.int32).view(torch.float32)
