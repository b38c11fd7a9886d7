"""Convolution and pooling with the signatures of `torch.nn.functional`, for 1, 2 and 3 spatial dimensions.

Every function checks its arguments before any work, and raises what torch raises.  Inputs may be batched, [N, C, *],
or not, [C, *].  Results have torch's dtype and memory format, and derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.geometry import AvgGeometry, ConvGeometry, PoolGeometry

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
]

_Size = int | Sequence[int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation) of an input with a weight, as `torch.nn.functional.conv2d`.

        y[n, o, p] = bias[o] + Σ_c Σ_k weight[o, c, k] · input[n, c, p·stride − padding + k·dilation]

    with zeros outside the input (Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning"; LeCun
    et al. 1998).  Its gradients are `torchconv.autograd.conv_input_grad` and `conv_weight_grad`.

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        weight: [O, C/groups, kH, kW], of the input's dtype and device.
        bias: [O] or None.
        stride: step between windows, in pixels; an int or one per dimension, as the next two.
        padding: zeros on either side, in pixels; or 'valid' for none; or 'same' for an output of the input's size.
        dilation: distance between the taps of a window, in pixels.
        groups: number of channel groups that do not see one another.

    Returns:
        [N, O, H', W'] or [O, H', W'], where H' = ⌊(H + 2·padding − dilation·(kH − 1) − 1) / stride⌋ + 1.
        Channels_last if the input or the weight is.

    Raises:
        RuntimeError: sizes, devices or dtypes that do not fit together, or a value out of range.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 5, 5)
        >>> torchconv.functional.conv2d(x, w, stride=2, padding=2).shape
        torch.Size([8, 16, 16, 16])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution: `conv2d` with one spatial dimension; input [N, C, L] or [C, L], weight [O, C/groups, k]."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor:
    """3-D convolution: `conv2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """2-D transposed convolution, as `torch.nn.functional.conv_transpose2d`.

        y[n, c, i] = bias[c] + Σ_o Σ_{p·stride − padding + k·dilation = i} weight[o, c, k] · input[n, o, p]

    It is the gradient of a convolution with respect to its input (dgrad), and computed as such: its "input" is that
    convolution's output (Dumoulin & Visin 2016, chapter 4).

    Args:
        input: [N, O, H, W] or [O, H, W], floating point.
        weight: [O, C/groups, kH, kW], of the input's dtype and device.
        bias: [C] or None.
        stride, padding, dilation: those of the convolution that this transposes, in pixels.
        output_padding: pixels added at the upper end of each dimension of the output, to choose among the input sizes
            that the convolution would map to H; less than the stride or the dilation.
        groups: number of channel groups that do not see one another.

    Returns:
        [N, C, H', W'] or [C, H', W'], where
        H' = (H − 1)·stride − 2·padding + dilation·(kH − 1) + output_padding + 1.

    Raises:
        RuntimeError: sizes, devices or dtypes that do not fit together, or a value out of range.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> x, w = torch.randn(8, 16, 16, 16), torch.randn(16, 3, 5, 5)
        >>> torchconv.functional.conv_transpose2d(x, w, stride=2, padding=2, output_padding=1).shape
        torch.Size([8, 3, 32, 32])
    """
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """1-D transposed convolution: `conv_transpose2d` with one spatial dimension."""
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """3-D transposed convolution: `conv_transpose2d` with three spatial dimensions."""
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def max_pool2d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The greatest element of every window, as `torch.nn.functional.max_pool2d`.

        y[n, c, o] = max over taps k of input[n, c, o·stride − padding + k·dilation]

    Padding never wins.  Of equal values the first wins, in row-major order; a NaN wins over every number.  The gradient
    goes to the winner alone (LeCun et al. 1998; Scherer, Müller & Behnke 2010).

    Args:
        input: [N, C, H, W] or [C, H, W], floating point or integer.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next three.
        stride: step between windows, in pixels; by default the window's size.
        padding: pixels added on either side, at most half the window.
        dilation: distance between the taps of a window, in pixels.
        ceil_mode: keep a last window that reaches beyond the padded input, as long as it starts inside it.
        return_indices: also return the winners' positions in the flattened [H·W] input, int64.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = ⌊(H + 2·padding − dilation·(kH − 1) − 1) / stride⌋ + 1 (⌈⌉ with
        `ceil_mode`); with `return_indices` a tuple of it and the indices.

    Raises:
        RuntimeError: a size or value out of range.
        NotImplementedError: a dtype that has no order.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """1-D max pooling: `max_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """3-D max pooling: `max_pool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool1d` with `return_indices=True`."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool2d` with `return_indices=True`."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool3d` with `return_indices=True`."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def avg_pool2d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of every window, as `torch.nn.functional.avg_pool2d`.

        y[n, c, o] = Σ_k input[n, c, o·stride − padding + k] / divisor[o]

    Its gradient is the output's, upsampled and divided by the same divisors (LeCun et al. 1998).

    Args:
        input: [N, C, H, W] or [C, H, W], floating point or int64.
        kernel_size: size of the window, in pixels; an int or one per dimension, as the next two.
        stride: step between windows, in pixels; by default the window's size.
        padding: zeros added on either side, at most half the window.
        ceil_mode: keep a last window that reaches beyond the padded input, as long as it starts inside it.
        count_include_pad: whether the divisor counts the padding (never what lies beyond it).
        divisor_override: the divisor, instead of the number of the window's elements.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = ⌊(H + 2·padding − kH) / stride⌋ + 1 (⌈⌉ with `ceil_mode`).

    Raises:
        RuntimeError: a size or value out of range.
        NotImplementedError: a dtype that torch does not average.
        TypeError: an argument of the wrong type.

    Example:
        >>> torchconv.functional.avg_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    return _avg_pool(
        "avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool1d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """1-D average pooling: `avg_pool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool3d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """3-D average pooling: `avg_pool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _avg_pool(
        "avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _conv(
    name: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Size,
    padding: _Size | str,
    dilation: _Size,
    groups: int,
) -> Tensor:
    input, weight, bias = _check_factors(name, rank, input, weight, bias)

    def run(x: Tensor) -> Tensor:
        geometry = ConvGeometry.of_conv(x.shape, weight.shape, stride, padding, dilation, groups)
        _check_bias(bias, weight, weight.shape[0])
        return autograd.conv(x, weight, bias, geometry)

    return _batched(name, rank, input, run)


def _conv_transpose(
    name: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Size,
    padding: _Size,
    output_padding: _Size,
    groups: int,
    dilation: _Size,
) -> Tensor:
    input, weight, bias = _check_factors(name, rank, input, weight, bias)

    def run(x: Tensor) -> Tensor:
        geometry = ConvGeometry.of_conv_transpose(
            x.shape, weight.shape, stride, padding, output_padding, groups, dilation
        )
        _check_bias(bias, weight, weight.shape[1] * groups)
        return autograd.conv_input_grad(x, weight, bias, geometry)

    return _batched(name, rank, input, run)


def _max_pool(
    name: str,
    rank: int,
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None,
    padding: _Size,
    dilation: _Size,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    _check_tensor(name, "input", input)
    if input.dtype is torch.bool or input.is_complex():
        raise NotImplementedError(f"{name}(): not implemented for an input of dtype {input.dtype}")

    def run(x: Tensor) -> Any:
        geometry = PoolGeometry.of_pool(x.shape, rank, kernel_size, stride, padding, dilation, ceil_mode)
        y, offset = autograd.max_pool(x, geometry)
        return (y, autograd.winner_index(offset, geometry)) if return_indices else y

    return _batched(name, rank, input, run)


def _avg_pool(
    name: str,
    rank: int,
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None,
    padding: _Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    _check_tensor(name, "input", input)
    if not (input.is_floating_point() or input.dtype is torch.int64):
        raise NotImplementedError(f"{name}(): not implemented for an input of dtype {input.dtype}")
    if divisor_override == 0:
        raise RuntimeError(f"{name}(): divisor_override must not be zero")

    def run(x: Tensor) -> Tensor:
        pool = PoolGeometry.of_pool(x.shape, rank, kernel_size, stride, padding, 1, ceil_mode)
        return autograd.avg_pool(
            x, AvgGeometry(**vars(pool), count_include_pad=count_include_pad, divisor=divisor_override or 0)
        )

    return _batched(name, rank, input, run)


def _batched(name: str, rank: int, input: Tensor, run: Callable[[Tensor], Any]) -> Any:
    """`run` on a batched input; an unbatched one is a batch of one on the way in and out."""
    if input.dim() == rank + 2:
        return run(input)
    if input.dim() != rank + 1:
        raise RuntimeError(
            f"expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, "
            f"but got input of size {list(input.shape)}"
        )
    result = run(input.unsqueeze(0))
    return tuple(t.squeeze(0) for t in result) if isinstance(result, tuple) else result.squeeze(0)


def _check_tensor(name: str, argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}(): argument '{argument}' must be Tensor, not {type(value).__name__}")


def _check_factors(
    name: str, rank: int, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors of a convolution, cast as autocast asks; types, devices and ranks fit together."""
    tensors = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for argument, value in tensors.items():
        _check_tensor(name, argument, value)
    if weight.dim() != rank + 2:
        raise RuntimeError(f"expected {rank + 2}D weight for {name}, but got weight of size {list(weight.shape)}")
    for argument, value in tensors.items():
        if value.device != input.device:
            raise RuntimeError(
                f"{name}(): expected all tensors to be on the same device, "
                f"but input is on {input.device} and {argument} on {value.device}"
            )
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        # As torch's autocast: every float but float64.
        tensors = {
            argument: value.to(dtype) if value.is_floating_point() and value.dtype is not torch.float64 else value
            for argument, value in tensors.items()
        }
    for argument, value in tensors.items():
        if value.dtype != tensors["input"].dtype:
            raise RuntimeError(
                f"{name}(): input type ({tensors['input'].dtype}) and {argument} type ({value.dtype}) "
                f"should be the same"
            )
    if not tensors["input"].is_floating_point():
        raise NotImplementedError(
            f"{name}(): not implemented for an input of dtype {input.dtype}; expected a floating-point type"
        )
    return tensors["input"], tensors["weight"], tensors.get("bias")


def _check_bias(bias: Tensor | None, weight: Tensor, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise RuntimeError(
            f"given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {channels} elements, "
            f"but got bias of size {list(bias.shape)} instead"
        )
