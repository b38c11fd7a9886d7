"""The checked interpreter finds planted bugs, one kernel for each class, and nothing in kernels without."""

import pytest
import torch
import triton
import triton.language as tl
from checked import Fault, checked

from triton_kernels import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled in this process")


@triton.jit
def add_one(p_x, p_y, n, SHIFT: tl.constexpr, MASKED: tl.constexpr, OTHER: tl.constexpr, BLOCK: tl.constexpr):
    """y[i] = x[i + SHIFT] + 1"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(p_x + i + SHIFT, mask=i < n, other=0.0 if OTHER else None)
    if MASKED:
        tl.store(p_y + i, x + 1.0, mask=i < n)
    else:
        tl.store(p_y + i, x + 1.0)


@triton.jit
def add_blocks(p_x, p_y, n, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """y[i] = 2·x[i], in blocks that overlap if STEP is less than BLOCK."""
    i = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    x = tl.load(p_x + i, mask=i < n, other=0.0)
    tl.store(p_y + i, x + x, mask=i < n)


@triton.jit
def masked_sum(p_x, p_y, n, BLOCK: tl.constexpr):
    """The sum of x, with a load that forgets `other`."""
    i = tl.arange(0, BLOCK)
    tl.store(p_y, tl.sum(tl.load(p_x + i, mask=i < n), axis=0))


@triton.jit
def read_back(p_x, p_y, BLOCK: tl.constexpr):
    """y[i] = x[BLOCK − 1 − i], by way of memory within one program."""
    i = tl.arange(0, BLOCK)
    tl.store(p_y + i, tl.load(p_x + i))
    tl.store(p_y + i, tl.load(p_y + BLOCK - 1 - i))


@triton.jit
def to_one_place(p_x, p_y, BLOCK: tl.constexpr):
    """Every lane stores its own value to y[0]."""
    i = tl.arange(0, BLOCK)
    tl.store(p_y + i * 0, tl.load(p_x + i))


@triton.jit
def add_atomically(p_x, p_y, BLOCK: tl.constexpr):
    tl.atomic_add(p_y + tl.arange(0, BLOCK) * 0, tl.load(p_x + tl.arange(0, BLOCK)))


@triton.jit
def copy_row(p_x, p_y, row, length, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """y = x[row]"""
    i = tl.arange(0, BLOCK)
    row = row.to(tl.int64) if WIDE else row
    tl.store(p_y + i, tl.load(p_x + row * length + i))


def run(n=40, shift=0, masked=True, other=True, x=None, y=None, **options):
    x = torch.arange(n, dtype=torch.float32) if x is None else x
    with checked(**options):
        y = torch.empty(n) if y is None else y
        add_one[(3,)](x, y, n, SHIFT=shift, MASKED=masked, OTHER=other, BLOCK=16)
    return y


@pytest.mark.parametrize("overflow", [False, True])
def test_correct_kernels_raise_no_alarm(overflow):
    assert torch.equal(run(overflow=overflow), torch.arange(40.0) + 1)
    # A masked-off lane that goes nowhere needs no value.
    assert torch.equal(run(other=False, overflow=overflow), torch.arange(40.0) + 1)
    x, y = torch.randn(40), torch.empty(40)
    with checked(overflow):
        add_blocks[(3,)](x, y, 40, STEP=16, BLOCK=16)
        # In place: each program loads and stores its own elements.
        add_blocks[(3,)](y, y, 40, STEP=16, BLOCK=16)
    assert torch.equal(y, 4 * x)


def test_load_out_of_bounds():
    with pytest.raises(
        Fault, match=r"add_one: load of 1 element\(s\) out of bounds of `p_x`.*test_checked.py:\d+, .*\(2"
    ):
        run(shift=1)
    with pytest.raises(Fault, match=r"load of 1 element\(s\) out of bounds of `p_x`.*\(0, 0, 0\)"):
        run(shift=-1)


def test_store_out_of_bounds():
    with pytest.raises(Fault, match=r"store of 8 element\(s\) out of bounds of `p_y`"):
        run(masked=False)


def test_neighbouring_view_of_the_same_storage():
    storage = torch.zeros(80)
    with pytest.raises(Fault, match=r"load of 1 element\(s\) out of bounds of `p_x`"):
        run(shift=1, x=storage[:40], y=storage[40:])
    assert torch.equal(run(x=storage[:40], y=storage[40:]), torch.ones(40))


def test_gap_between_the_rows_of_a_view():
    with pytest.raises(Fault, match=r"store of 6 element\(s\) out of bounds of `p_y`"):
        run(y=torch.zeros(5, 16)[:, :10])


def test_missing_mask_within_the_allocation():
    # 40 floats: the allocator hands out more, and on a GPU the store passes in silence.
    with pytest.raises(Fault, match="out of bounds"):
        run(n=40, masked=False)
    assert torch.equal(run(n=48, masked=False), torch.arange(48.0) + 1)


def test_programs_that_store_the_same_elements():
    with pytest.raises(Fault, match="add_blocks: race on `p_y`: this program stores what another stored"), checked():
        add_blocks[(3,)](torch.randn(40), torch.empty(40), 40, STEP=12, BLOCK=16)


def test_program_that_loads_what_another_stores():
    x = torch.randn(41)
    with pytest.raises(Fault, match=r"race on `p_.`: this program (loads|stores) what another"), checked():
        add_one[(3,)](x, x, 40, SHIFT=1, MASKED=True, OTHER=True, BLOCK=16)


def test_program_that_loads_what_it_stored():
    with pytest.raises(Fault, match="loads what it stored itself"), checked():
        read_back[(1,)](torch.randn(16), torch.zeros(16), BLOCK=16)


def test_lanes_that_store_to_one_element():
    with pytest.raises(Fault, match="two lanes store different values"), checked():
        to_one_place[(1,)](torch.randn(16), torch.zeros(16), BLOCK=16)
    with checked():
        to_one_place[(1,)](torch.ones(16), torch.zeros(16), BLOCK=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_load_without_other(dtype):
    y = torch.zeros(1, dtype=dtype)
    with pytest.raises(Fault, match=r"store of 1 value\(s\) that a load without `other` had masked off"), checked():
        masked_sum[(1,)](torch.ones(10, dtype=dtype), y, 10, BLOCK=16)
    with checked():
        masked_sum[(1,)](torch.ones(16, dtype=dtype), y, 16, BLOCK=16)
    assert y.item() == 16


def test_memory_nobody_wrote():
    with pytest.raises(Fault, match=r"load of 16 element\(s\) of `p_x` that nobody has written"), checked():
        add_blocks[(3,)](torch.empty(40), torch.empty(40), 40, STEP=16, BLOCK=16)
    with checked() as checker:
        x, y = torch.empty(40).fill_(1), torch.empty(50)
        add_blocks[(3,)](x, y, 40, STEP=16, BLOCK=16)
    assert checker.unwritten(y) == 10
    assert checker.unwritten(y[:40]) == 0


def test_atomic_operation():
    with pytest.raises(Fault, match="add_atomically: atomic operation"), checked():
        add_atomically[(1,)](torch.randn(16), torch.zeros(1), BLOCK=16)


def test_overflow_of_32_bits():
    x = torch.empty(3, 2**30, device="meta")
    y = torch.empty(16, device="meta")
    with pytest.raises(Fault, match=r"copy_row: int32 overflow .*test_checked.py:\d+, program"), checked(overflow=True):
        copy_row[(1,)](x, y, 2, 2**30, WIDE=False, BLOCK=16)
    # Without the option, the wrapped address shows.
    with pytest.raises(Fault, match=r"load of 16 element\(s\) out of bounds of `p_x`"), checked():
        copy_row[(1,)](x, y, 2, 2**30, WIDE=False, BLOCK=16)
    with checked(overflow=True):
        copy_row[(1,)](x, y, 2, 2**30, WIDE=True, BLOCK=16)


def test_only_the_programs_asked_for():
    with checked(programs=lambda grid: [(grid[0] - 1, 0, 0)]) as checker:
        y = torch.empty(40)
        add_blocks[(3,)](torch.ones(40), y, 40, STEP=16, BLOCK=16)
    assert checker.unwritten(y) == 32
    assert checker.launches == ["add_blocks"]
