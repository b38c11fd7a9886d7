"""Triton's interpreter, repaired: what it silently computes wrong, it computes right or refuses.

With TRITON_INTERPRET=1 Triton runs kernels in numpy, which has no bfloat16: the interpreter keeps the bit patterns in
uint16 and (Triton 3.2 to 3.8) multiplies and adds those patterns as integers, truncates where a GPU rounds to nearest
even, and ignores `input_precision="tf32"`.  Here bfloat16 arithmetic widens to float32, where it is exact or rounds
innocuously, and rounds once; dot operands are rounded to tf32 where the kernel asks for it.

`repair` puts a subclass of Triton's builder in place of the original and then runs a kernel that uses all of it.  If
the results differ from torch's in one bit, bfloat16 launches are refused; other types run on.

Run with Triton 3.2.0, 3.3.1, 3.4.0, 3.5.1, 3.6.0, 3.7.0 and 3.8.0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter as upstream

Handle = Any  # upstream.TensorHandle: a numpy array and its Triton type
Array = NDArray[Any]


def repair() -> None:
    """Repair Triton's interpreter for this process; a second call does nothing.

    If this Triton's interpreter is not as expected, launching a kernel with a bfloat16 tensor raises
    NotImplementedError.
    """
    if getattr(upstream.InterpretedFunction, "_repaired", False):
        return
    upstream.InterpretedFunction._repaired = True
    try:
        upstream.interpreter_builder.__class__ = _builder_class()
        upstream.ReduceOps.apply_impl = _exact_reduction(upstream.ReduceOps.apply_impl)
        upstream.ScanOps.apply_impl = _exact_reduction(upstream.ScanOps.apply_impl)
        # Overflow checks evaluate every integer operation twice; tests that look for overflow turn them on again.
        upstream.interpreter_builder.options = dataclasses.replace(
            upstream.interpreter_builder.options, sanitize_overflow=False
        )
        wrong = _probe_bfloat16()
    except Exception as error:
        wrong = repr(error)
    if wrong:
        _refuse_bfloat16(wrong)


# Numerics ------------------------------------------------------------------------------------------------------------


def widen(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) as float32: exact."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: Array) -> Array:
    """Numbers of any type as bfloat16 bit patterns (uint16), rounded once, to nearest even."""
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float16):
        values = _to_odd(values.astype(np.float64))
    bits = np.atleast_1d(values.astype(np.float32)).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # keeps sign and payload
    return np.where(np.isnan(bits.view(np.float32)), quiet_nan, nearest).astype(np.uint16).reshape(values.shape)


def _to_odd(values: Array) -> Array:
    """float64 as float32, inexact results to the neighbour with odd mantissa, so that rounding again rounds once."""
    with np.errstate(over="ignore"):
        near = np.atleast_1d(values.astype(np.float32))
    wrong = (near != values) & ((near.view(np.uint32) & 1) == 0) & np.isfinite(values)
    towards = np.where(values > near, np.inf, -np.inf).astype(np.float32)
    return np.where(wrong, np.nextafter(near, towards), near).reshape(values.shape)


def to_tf32(values: Array) -> Array:
    """float32 with 10 bits of mantissa, to nearest, ties away from zero: the conversion cvt.rna.tf32.f32."""
    bits = (values.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), bits.view(np.float32), values)


def _is_bfloat16(handle: Handle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _wide(handle: Handle) -> Handle:
    return upstream.TensorHandle(widen(handle.data), tl.float32) if _is_bfloat16(handle) else handle


# The builder ---------------------------------------------------------------------------------------------------------


def _builder_class() -> type:
    """The subclass of Triton's InterpreterBuilder; made on demand, since another Triton may lack what it needs."""
    handle, base = upstream.TensorHandle, upstream.InterpreterBuilder
    tf32 = upstream._ir.INPUT_PRECISION.TF32
    for name in ("cast_impl", "create_fp_to_fp", "binary_op", "unary_op", "ternary_op", "create_fma", "create_dot"):
        getattr(base, name)  # AttributeError: not the interpreter that this was written for

    class RepairedBuilder(base):  # type: ignore[misc, valid-type]
        def get_bf16(self, value: float) -> Handle:
            return handle(narrow(np.array([value], dtype=np.float64)), tl.bfloat16)

        def cast_impl(self, src: Handle, dst_type: Any) -> Handle:
            if dst_type.scalar == tl.bfloat16:
                return src if _is_bfloat16(src) else handle(narrow(src.data), tl.bfloat16)
            return super().cast_impl(_wide(src), dst_type)

        def create_fp_to_fp(self, src: Handle, dst_type: Any, rounding_mode: Any) -> Handle:
            if rounding_mode != upstream._ir.ROUNDING_MODE.RTZ and tl.bfloat16 in (src.dtype.scalar, dst_type.scalar):
                if dst_type.scalar.primitive_bitwidth == 8:
                    raise _unsupported("a conversion between bfloat16 and float8")
                return self.cast_impl(src, dst_type)
            return super().create_fp_to_fp(src, dst_type, rounding_mode)

        def binary_op(self, lhs: Handle, rhs: Handle, op: Any) -> Handle:
            if not (_is_bfloat16(lhs) or _is_bfloat16(rhs)):
                return super().binary_op(lhs, rhs, op)
            result = op(_wide(lhs).data, _wide(rhs).data)
            if result.dtype == np.bool_:
                return handle(result, tl.int1)
            return handle(narrow(result), tl.bfloat16)

        def unary_op(self, arg: Handle, op: Any) -> Handle:
            if not _is_bfloat16(arg):
                return super().unary_op(arg, op)
            return handle(narrow(op(_wide(arg).data)), tl.bfloat16)

        def ternary_op(self, lhs: Handle, rhs: Handle, other: Handle, op: Any) -> Handle:
            # np.where moves bit patterns and needs no repair; all else computes with them.
            if op is np.where or not _is_bfloat16(other):
                return super().ternary_op(lhs, rhs, other, op)
            return handle(narrow(op(_wide(lhs).data, _wide(rhs).data, _wide(other).data)), tl.bfloat16)

        def create_fma(self, x: Handle, y: Handle, z: Handle) -> Handle:
            if not _is_bfloat16(z):
                return super().create_fma(x, y, z)
            x64, y64, z64 = (widen(h.data).astype(np.float64) for h in (x, y, z))
            return handle(narrow(x64 * y64 + z64), tl.bfloat16)

        def create_dot(self, a: Handle, b: Handle, d: Handle, input_precision: Any, *rest: Any) -> Handle:
            a, b = _wide(a), _wide(b)
            if input_precision == tf32 and a.data.dtype == b.data.dtype == np.float32:
                a, b = (handle(to_tf32(h.data), tl.float32) for h in (a, b))
            return super().create_dot(a, b, d, input_precision, *rest)

    def refuse(name: str) -> Any:
        original = getattr(base, name)

        def run(self: Any, *args: Any) -> Any:
            if any(isinstance(a, handle) and a.dtype.scalar == tl.bfloat16 for a in args):
                raise _unsupported(f"{name} on bfloat16")
            return original(self, *args)

        return run

    # What computes by a path of its own, and no kernel of this package uses with bfloat16.
    for name in ("create_erf", "create_rsqrt", "create_atomic_rmw", "create_atomic_cas", "create_dot_scaled"):
        if hasattr(base, name):
            setattr(RepairedBuilder, name, refuse(name))
    return RepairedBuilder


def _exact_reduction(original: Any) -> Any:
    """Let a reduction or scan of bfloat16 combine element by element, and not in numpy on bit patterns."""

    def apply_impl(self: Any, input: Any) -> Any:
        if not any(arg.dtype == tl.bfloat16 for arg in input):
            return original(self, input)
        if hasattr(self, "generic_reduce"):
            return self.generic_reduce(input)
        raise _unsupported("a scan of bfloat16")

    return apply_impl


# Proof ---------------------------------------------------------------------------------------------------------------


@triton.jit
def _bfloat16_kernel(a, b, c, out, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x, y = tl.load(a + offsets), tl.load(b + offsets)
    tl.store(out + offsets, x + y)
    tl.store(out + N * N + offsets, x * y - 0.1)
    tl.store(out + 2 * N * N + offsets, tl.where(x > y, x, -y))
    tl.store(out + 3 * N * N + offsets, tl.dot(x, y, input_precision="ieee").to(tl.bfloat16))
    tl.store(out + 4 * N * N + offsets, tl.load(c + offsets).to(tl.bfloat16))
    tl.store(out + 5 * N * N + offsets, tl.maximum(x.to(tl.float32), 0.0).to(tl.bfloat16))
    tl.store(out + 6 * N * N + offsets, offsets.to(tl.bfloat16))
    tl.store(out + 7 * N * N + offsets, tl.full((N, N), 1.005, tl.bfloat16))


def _probe_bfloat16() -> str:
    """Run one kernel in bfloat16; what differs from torch, or the empty string."""
    n = 16
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(n, n, generator=generator, dtype=torch.float64)
    # Small integers and halves make the dot product exact whatever its order; c holds the awkward fractions.
    a, b = ((torch.randint(-9, 10, (n, n), generator=generator) / 2).bfloat16() for _ in range(2))
    expected = torch.stack(
        [
            a + b,
            a * b - 0.1,
            torch.where(a > b, a, -b),
            (a.double() @ b.double()).bfloat16(),
            c.bfloat16(),
            a.relu(),
            torch.arange(n * n).view(n, n).bfloat16(),
            torch.full((n, n), 1.005).bfloat16(),
        ]
    )
    out = torch.empty_like(expected)
    _bfloat16_kernel[(1,)](a, b, c, out, N=n)
    steps = ("+", "* and constants", "where", "dot", "float64 cast", "float32 cast", "integer cast", "full")
    return ", ".join(step for step, got, want in zip(steps, out, expected) if not torch.equal(got, want))


def _unsupported(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"Triton {triton.__version__}'s interpreter cannot run {what} correctly, and torchconv's repair does not fit it"
    )


def _refuse_bfloat16(reason: str) -> None:
    convert = upstream._implicit_cvt  # what every argument of a launch goes through

    def guarded(arg: Any) -> Any:
        if isinstance(arg, torch.Tensor) and arg.dtype == torch.bfloat16:
            raise _unsupported(f"bfloat16 (wrong: {reason})")
        return convert(arg)

    upstream._implicit_cvt = guarded
