"""What every launcher needs: sizes lifted to three dimensions, dense tensors, accumulation types, launching."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.tiles import split_pixel

# Older ones have no product of float64, nor of fewer than 16 columns.
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 5):
    raise ImportError(
        f"the kernels need Triton 3.5 or newer, which comes with PyTorch 2.9, but this is Triton {triton.__version__}"
    )

# Triton reads TRITON_INTERPRET when it is imported, and from then on every kernel is either compiled or interpreted.
INTERPRETED: bool = not isinstance(split_pixel, triton.JITFunction)

# Bytes that one program of an elementwise kernel computes: for each of 128 threads eight float32 or half floats, which
# are 16 bytes at least, or four float64.
_BLOCK_BYTES = 4096
# Elements where positions take 64 bits: two a thread, for more spill.
_LONG_BLOCK = 256


class Geometry(Protocol):
    """The sizes that pooling and convolution share; see `torchconv.geometry` for what they mean."""

    @property
    def input(self) -> Sequence[int]: ...
    @property
    def output(self) -> Sequence[int]: ...
    @property
    def kernel(self) -> Sequence[int]: ...
    @property
    def stride(self) -> Sequence[int]: ...
    @property
    def padding(self) -> Sequence[int]: ...
    @property
    def dilation(self) -> Sequence[int]: ...


class ConvGeometry(Geometry, Protocol):
    @property
    def groups(self) -> int: ...
    @property
    def padding_mode(self) -> str: ...


class BlockGeometry(ConvGeometry, Protocol):
    @property
    def pool(self) -> Sequence[int]: ...


class PoolGeometry(Geometry, Protocol):
    @property
    def adaptive(self) -> bool: ...


class AvgGeometry(PoolGeometry, Protocol):
    @property
    def count_include_pad(self) -> bool: ...
    @property
    def divisor(self) -> int: ...


class FractionalGeometry(Protocol):
    @property
    def input(self) -> Sequence[int]: ...
    @property
    def output(self) -> Sequence[int]: ...
    @property
    def kernel(self) -> Sequence[int]: ...


def three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """One to three dimensions as three: the ones added in front are trivial."""
    return (fill,) * (3 - len(values)) + tuple(values)


def sizes(geometry: Geometry | FractionalGeometry) -> dict[str, int]:
    """Input and output sizes: run-time arguments, so that another image size does not compile another kernel.

    Raises:
        ValueError: a sample has so many pixels that kernels, which go a tile further, cannot count them in 32 bits.
    """
    if max(math.prod(geometry.input), math.prod(geometry.output)) > 2**31 - 2**16:
        raise ValueError(
            f"a channel may have at most 2^31 - 2^16 pixels, got {[*geometry.input]} to {[*geometry.output]}"
        )
    lengths = three(geometry.input, 1) + three(geometry.output, 1)
    return dict(zip(("ID", "IH", "IW", "OD", "OH", "OW"), lengths))


def lifted(geometry: Geometry) -> dict[str, Any]:
    """The arguments that every kernel takes from a geometry.

    The window is fixed by the layer: constants, which the compiler folds into the addresses.
    """
    return {
        **sizes(geometry),
        "KERNEL": three(geometry.kernel, 1),
        "STRIDE": three(geometry.stride, 1),
        "PADDING": three(geometry.padding, 0),
        "DILATION": three(geometry.dilation, 1),
    }


def pool_arguments(
    source: Tensor, result: Tensor, geometry: PoolGeometry, memory_format: torch.memory_format
) -> dict[str, Any]:
    """The arguments that all pooling kernels take."""
    return {
        "N": source.shape[0],
        "C": source.shape[1],
        **lifted(geometry),
        "ADAPTIVE": geometry.adaptive,
        "CHANNELS_LAST": is_channels_last(memory_format),
        # Adaptive windows multiply positions along one dimension by its other size.
        "WIDE": needs_int64(source, result, slack=_BLOCK_BYTES)
        or (geometry.adaptive and max(*geometry.input, *geometry.output) ** 2 >= 2**31),
    }


def cover(geometry: Geometry) -> tuple[int, ...]:
    """For each of three dimensions, how many windows can hold one position."""
    window = zip(geometry.kernel, geometry.dilation, geometry.stride)
    return three([triton.cdiv((k - 1) * d + 1, s) for k, d, s in window], 1)


def pool_cover(geometry: PoolGeometry) -> tuple[int, ...]:
    """`cover`, also of adaptive windows."""
    if geometry.adaptive:
        return three([triton.cdiv(o, i) + 1 for o, i in zip(geometry.output, geometry.input)], 1)
    return cover(geometry)


def elementwise(kernel: Any, result: Tensor, *tensors: Tensor | None, **arguments: Any) -> None:
    """Launch a kernel whose programs compute BLOCK elements of `result` each; of no input, the result is zero."""
    long = arguments["WIDE"] and arguments.get("ADAPTIVE")
    block = _LONG_BLOCK if long else _BLOCK_BYTES // max(4, result.element_size())
    if tensors[0] is not None and tensors[0].numel() == 0:
        result.zero_()
    elif result.numel():
        with on_device_of(result):
            kernel[(triton.cdiv(result.numel(), block),)](*tensors, **arguments, BLOCK=block, num_warps=warps(128))


def warps(threads: int) -> int:
    """How many warps have so many threads: AMD's (of the CDNA family) have 64."""
    return threads // (64 if torch.version.hip else 32)


def all_registers() -> dict[str, int]:
    """A launch option of products, on NVIDIA: up to 255 registers a thread.

    Told no number, ptxas spills a register or two where that lets one more block run on a multiprocessor.
    """
    return {} if torch.version.hip else {"maxnreg": 255}


def is_channels_last(memory_format: torch.memory_format) -> bool:
    return memory_format in (torch.channels_last, torch.channels_last_3d)


def empty(like: Tensor, size: Sequence[int], memory_format: torch.memory_format, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=memory_format)


def laid_out(w: Tensor, flat: bool, memory_format: torch.memory_format) -> Tensor:
    """The weight as a product walks it: flat, in the format of the rest; else channels innermost, whatever that is.

    One tap after the other, the channels of a contiguous weight lie `taps` elements apart, a sector of memory for each.
    The copy, where one is needed, is of the weight alone.
    """
    return w.contiguous(memory_format=memory_format) if flat else w.movedim(1, -1).contiguous()


def accumulator(dtype: torch.dtype) -> Any:
    """The Triton type in which values of `dtype` are compared and summed: at least float32."""
    if dtype in (torch.float16, torch.bfloat16):
        return tl.float32
    return getattr(tl, str(dtype).removeprefix("torch."))


def needs_int64(*tensors: Tensor, slack: int = 0) -> bool:
    """Whether an offset into one of the tensors, plus what a tile may reach beyond its end, can pass 2^31."""
    return any(t.numel() + slack >= 2**31 for t in tensors)


def grid(programs: int, groups: int, splits: int = 1) -> tuple[int, int, int]:
    """The grid of a product: so many programs for each group and split.

    Raises:
        ValueError: there are more groups than a GPU has programs along the second dimension.
    """
    if groups > 65535:
        raise ValueError(f"a convolution may have at most 65535 groups on a GPU, but got {groups}")
    return programs, groups, splits


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def dot_precision(x: Tensor) -> str:
    """How `tl.dot` multiplies: TF32 where torch's own convolutions would use it, else exactly.

    TF32 is an NVIDIA format that float32 alone is rounded to; torch allows it for convolutions by default.
    """
    if x.dtype is torch.float32 and x.is_cuda and torch.version.hip is None and _tf32_allowed():
        return "tf32"
    return "ieee"


def _tf32_allowed() -> bool:
    conv = getattr(torch.backends.cudnn, "conv", None)  # newer than torch 2.8; reading the older flag may then raise
    return bool(torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32")
