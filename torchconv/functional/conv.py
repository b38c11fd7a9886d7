"""Convolution and transposed convolution, as in `torch.nn.functional`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import FLOATS_AND_COMPLEX, Size, batched, check_dtype, check_tensor
from torchconv.geometry import ConvGeometry


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """2-D convolution (cross-correlation) of an input with a weight, as `torch.nn.functional.conv2d`.

        y[n, o, p] = bias[o] + Σ_c Σ_k weight[o, c, k] · input[n, c, p·stride − padding + k·dilation]

    with zeros outside the input (Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning"; LeCun
    et al. 1998).  Its gradients are `torchconv.autograd.conv_input_grad` and `conv_weight_grad`.

    Args:
        input: [N, C, H, W] or [C, H, W], floating point or complex.
        weight: [O, C/groups, kH, kW], of the input's dtype and device.
        bias: [O] or None.
        stride: step between windows, in pixels; an int or one per dimension, as the next two.
        padding: zeros on either side, in pixels; or 'valid' for none; or 'same' for an output of the input's size.
        dilation: distance between the taps of a window, in pixels.
        groups: number of channel groups that do not see one another.
        padding_mode: 'reflect', 'replicate' or 'circular' pads with the input itself instead of zeros; beyond torch,
            whose modules make a padded copy for it.

    Returns:
        [N, O, H', W'] or [O, H', W'], where H' = ⌊(H + 2·padding − dilation·(kH − 1) − 1) / stride⌋ + 1.
        Channels_last if the input or the weight is.

    Raises:
        RuntimeError: sizes, devices or dtypes that do not fit together, or a value out of range.
        NotImplementedError: an integer dtype.
        TypeError: an argument of the wrong type.

    Example:
        >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 5, 5)
        >>> torchconv.functional.conv2d(x, w, stride=2, padding=2).shape
        torch.Size([8, 16, 16, 16])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """1-D convolution: `conv2d` with one spatial dimension; input [N, C, L] or [C, L], weight [O, C/groups, k]."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """3-D convolution: `conv2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """2-D transposed convolution, as `torch.nn.functional.conv_transpose2d`.

        y[n, c, i] = bias[c] + Σ_o Σ_{p·stride − padding + k·dilation = i} weight[o, c, k] · input[n, o, p]

    It is the gradient of a convolution with respect to its input (dgrad), and computed as such: its "input" is that
    convolution's output (Dumoulin & Visin 2016, chapter 4).

    Args:
        input: [N, O, H, W] or [O, H, W], floating point or complex.
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
        NotImplementedError: an integer dtype.
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
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """1-D transposed convolution: `conv_transpose2d` with one spatial dimension."""
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """3-D transposed convolution: `conv_transpose2d` with three spatial dimensions."""
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _conv(
    name: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    padding_mode: str,
) -> Tensor:
    input, weight, bias = check_factors(name, rank, input, weight, bias)
    x = batched(name, rank, input)
    geometry = ConvGeometry.of_conv(x.shape, weight.shape, stride, padding, dilation, groups, padding_mode)
    check_bias(bias, weight, weight.shape[0])
    y = _over_complex(autograd.conv, x, weight, bias, geometry)
    if not x.shape[1]:  # torch's rule: no channels give none, whatever the weight
        y = y[:, :0]
    return y if x is input else y.squeeze(0)


def _conv_transpose(
    name: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Tensor:
    input, weight, bias = check_factors(name, rank, input, weight, bias)
    x = batched(name, rank, input)
    geometry = ConvGeometry.of_conv_transpose(x.shape, weight.shape, stride, padding, output_padding, groups, dilation)
    check_bias(bias, weight, weight.shape[1] * groups)
    y = _over_complex(autograd.conv_input_grad, x, weight, bias, geometry)
    return y if x is input else y.squeeze(0)


def _over_complex(
    product: Callable[..., Tensor], x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """A product of real tensors; one of complex tensors is four of those: (a + bi)(c + di) = ac − bd + (ad + bc)i."""
    if not x.is_complex():
        return product(x, w, bias, geometry)
    real, imaginary = (None, None) if bias is None else (bias.real, bias.imag)
    return torch.complex(
        product(x.real, w.real, real, geometry) - product(x.imag, w.imag, None, geometry),
        product(x.real, w.imag, imaginary, geometry) + product(x.imag, w.real, None, geometry),
    )


def check_factors(
    name: str, rank: int, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors of a convolution, cast as autocast asks; types, devices and ranks fit together."""
    for argument, value in (("input", input), ("weight", weight), ("bias", bias)):
        if value is not None or argument != "bias":
            _check_factor(name, argument, value, input)
    if weight.dim() != rank + 2:
        raise RuntimeError(f"expected {rank + 2}D weight for {name}, but got weight of size {list(weight.shape)}")
    device_type = input.device.type
    # The operators' devices: to ask torch which ones have autocast breaks the graph of older Dynamos.
    if device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, weight = _rounded(input, dtype), _rounded(weight, dtype)
        bias = None if bias is None else _rounded(bias, dtype)
    for argument, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != input.dtype:
            raise RuntimeError(
                f"{name}(): input type ({input.dtype}) and {argument} type ({value.dtype}) should be the same"
            )
    check_dtype(name, input.dtype, FLOATS_AND_COMPLEX)
    return input, weight, bias


def _check_factor(name: str, argument: str, value: Any, input: Tensor) -> None:
    check_tensor(name, argument, value)
    if value.layout is not torch.strided:
        raise RuntimeError(f"{name}(): expected a dense {argument}, but got one of layout {value.layout}")
    if value.device != input.device:
        raise RuntimeError(
            f"{name}(): expected all tensors to be on the same device, "
            f"but input is on {input.device} and {argument} on {value.device}"
        )


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch's autocast: every float but float64."""
    return t.to(dtype) if t.is_floating_point() and t.dtype is not torch.float64 else t


def check_bias(bias: Tensor | None, weight: Tensor, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise RuntimeError(
            f"given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {channels} elements, "
            f"but got bias of size {list(bias.shape)} instead"
        )
