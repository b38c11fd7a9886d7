"""Operands for launchers, the eager oracle in float64, and a check that fits what the tests run on."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import triton_kernels
from torchconv.eager import conv as eager_conv
from torchconv.geometry import BlockGeometry, ConvGeometry, extended
from triton_kernels import INTERPRETED, configs
from triton_kernels.interpreter import to_tf32

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
CONV = ("conv_fprop", "conv_dgrad", "conv_wgrad")
BLOCK = ("block_fprop", "block_dgrad", "block_wgrad")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TF32 = "tf32"
KINDS: tuple[torch.dtype | str, ...] = (*DTYPES, TF32)

__all__ = [
    "BLOCK",
    "CONV",
    "DEVICE",
    "DTYPES",
    "KINDS",
    "TF32",
    "Conv",
    "checking",
    "dot_precision",
    "dtype_of",
    "rounded",
    "short",
    "tiles_of",
]


class Conv(NamedTuple):
    """A convolution: input [batch, channels, *size], weight [outputs, channels/groups, *kernel]."""

    batch: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def geometry(self) -> ConvGeometry:
        x, w = (self.batch, self.channels, *self.size), (self.outputs, self.channels // self.groups, *self.kernel)
        return ConvGeometry.of_conv(x, w, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)

    def block(self, pool: tuple[int, ...]) -> BlockGeometry:
        """The geometry of the fused block with pooling windows of size `pool`."""
        return extended(BlockGeometry, self.geometry, pool)

    def operands(self, dtype: torch.dtype, device: torch.device | str = DEVICE) -> tuple[Tensor, Tensor, Tensor]:
        """x, w and the gradient of the result."""
        geometry = self.geometry
        sizes = (
            (self.batch, self.channels, *geometry.input),
            (self.outputs, self.channels // self.groups, *geometry.kernel),
            (self.batch, self.outputs, *geometry.output),
        )
        make = torch.empty if str(device) == "meta" else torch.randn
        return tuple(make(size, device=device).to(dtype) for size in sizes)  # type: ignore[return-value]

    def memory_format(self, channels_last: bool) -> torch.memory_format:
        if not channels_last:
            return torch.contiguous_format
        return torch.channels_last if len(self.size) == 2 else torch.channels_last_3d

    def terms(self, name: str) -> int:
        """How many products one element of the launcher's result sums."""
        taps = math.prod(self.kernel)
        return {
            "conv_fprop": self.channels // self.groups * taps,
            "conv_dgrad": self.outputs // self.groups * taps,
            "conv_wgrad": self.batch * math.prod(self.geometry.output),
        }[name]

    def launch(
        self, name: str, x: Tensor, w: Tensor, g: Tensor, bias: Tensor | None, memory_format: torch.memory_format
    ) -> list[Tensor]:
        """The results of launcher `name`; `bias` is for fprop, its first entries for dgrad."""
        return self._call(vars(triton_kernels)[name], name, x, w, g, bias, memory_format)

    def exact(self, name: str, x: Tensor, w: Tensor, g: Tensor, bias: Tensor | None) -> list[Tensor]:
        """The same by `torchconv.eager` in float64."""
        function = getattr(eager_conv, name.removeprefix("conv_"))
        x, w, g = (t.detach().cpu().double().contiguous() for t in (x, w, g))
        bias = None if bias is None else bias.cpu().double()
        return self._call(function, name, x, w, g, bias, torch.contiguous_format)

    def _call(
        self,
        function: Callable[..., Tensor | tuple[Tensor, Tensor]],
        name: str,
        x: Tensor,
        w: Tensor,
        g: Tensor,
        bias: Tensor | None,
        memory_format: torch.memory_format,
    ) -> list[Tensor]:
        if name == "conv_wgrad":
            return list(function(x, g, bias is not None, self.geometry, memory_format))
        if name == "conv_fprop":
            return [function(x, w, None if bias is None else bias[: self.outputs], self.geometry, memory_format)]
        return [function(g, w, None if bias is None else bias[: self.channels], self.geometry, memory_format)]


@contextlib.contextmanager
def checking(overflow: bool = False) -> Iterator[Callable[[Tensor], None]]:
    """Check what kernels do inside, where they are interpreted; yields a function that a result is to pass."""
    if INTERPRETED:
        from checked import checked

        with checked(overflow) as checker:

            def written(result: Tensor) -> None:
                assert checker.unwritten(result) == 0

            yield written
    else:
        yield lambda result: None


def tiles_of(name: str, kind: torch.dtype | str) -> tuple[configs.Tile, ...]:
    """All tiles that launcher `name` can be launched with, on the GPU at hand; `kind` is a type or TF32."""
    table = configs.GRADIENT_TILES if name.endswith("wgrad") else configs.PRODUCT_TILES
    return configs.tiles_for(table, dtype_of(kind), str(kind))


def dtype_of(kind: torch.dtype | str) -> torch.dtype:
    """The type of the operands."""
    return torch.float32 if isinstance(kind, str) else kind


@contextlib.contextmanager
def dot_precision(kind: torch.dtype | str) -> Iterator[None]:
    """What launchers ask for on a GPU where torch allows TF32, if that is the kind."""
    with contextlib.ExitStack() as stack:
        for name in ("block", *CONV) if kind == TF32 else ():
            module = importlib.import_module(f"triton_kernels.{name}")
            stack.enter_context(mock.patch.object(module, "dot_precision", return_value=TF32))
        yield


def rounded(kind: torch.dtype | str, *tensors: Tensor) -> list[Tensor]:
    """The tensors, for TF32 with values that it holds: their products are exact then."""
    if kind != TF32:
        return list(tensors)
    return [torch.from_numpy(to_tf32(t.cpu().numpy())).to(t.device) for t in tensors]


def short(kind: torch.dtype | str) -> str:
    return str(kind).removeprefix("torch.")
