"""Max unpooling, as in `torch.nn.functional`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import FLOATS, Size, as_autocast, batched, check_input, check_tensor
from torchconv.geometry import IndexGeometry
from torchconv.integers import as_int, as_tuple


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The partial inverse of max pooling, as `torch.nn.functional.max_unpool2d`.

        y[n, c, indices[n, c, o]] = input[n, c, o], elsewhere 0

    Where two windows name one position the last one's value is kept, in row-major order, on every device; as torch's,
    the gradient reads that position for both (Zeiler & Fergus 2014).

    Args:
        input: [N, C, H, W] or [C, H, W], floating point.
        indices: what max pooling returned beside `input`: int64 positions in the flattened output, of the same shape.
        kernel_size: size of the pooling window, in pixels; an int or one per dimension, as the next two.
        stride: step between windows, in pixels; by default the window's size.
        padding: padding of the pooling, in pixels.
        output_size: [H', W'] or [N, C, H', W'] of the pooling's input, within a stride of what is assumed without it.

    Returns:
        [N, C, H', W'] or [C, H', W'], where H' = (H − 1)·stride + kH − 2·padding without `output_size`.

    Raises:
        ValueError: an `output_size` that no such pooling maps to the input's, or a negative one.
        RuntimeError: indices of another shape, type or device, or outside the output.
        NotImplementedError: a dtype that is not floating point.
        TypeError: an argument of the wrong type.

    Example:
        >>> y, indices = torchconv.functional.max_pool2d(torch.eye(2).view(1, 2, 2), 2, return_indices=True)
        >>> torchconv.functional.max_unpool2d(y, indices, 2)
        tensor([[[1., 0.],
                 [0., 0.]]])
    """
    return _max_unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """1-D max unpooling: `max_unpool2d` with one spatial dimension; input [N, C, L] or [C, L]."""
    return _max_unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """3-D max unpooling: `max_unpool2d` with three spatial dimensions; input [N, C, D, H, W] or [C, D, H, W]."""
    return _max_unpool("max_unpool3d", 3, input, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    name: str,
    rank: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    output_size: Sequence[int] | None,
) -> Tensor:
    check_input(name, input, FLOATS)
    check_tensor(name, "indices", indices)
    if indices.dtype is not torch.int64:
        raise RuntimeError(f"{name}(): elements in indices should be type int64 but got: {indices.dtype}")
    if indices.device != input.device:
        raise RuntimeError(
            f"{name}(): expected all tensors to be on the same device, "
            f"but input is on {input.device} and indices on {indices.device}"
        )
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{name}(): expected shape of indices to be same as that of the input tensor ({list(input.shape)}) "
            f"but got indices tensor with shape: {list(indices.shape)}"
        )
    kernel = as_tuple(kernel_size, rank, "kernel_size")
    strides = kernel if stride is None else as_tuple(stride, rank, "stride")
    lower = as_tuple(padding, rank, "padding")

    input = as_autocast(name, input)
    x = batched(name, rank, input)
    assumed = tuple((n - 1) * s + k - 2 * p for n, s, k, p in zip(x.shape[2:], strides, kernel, lower))
    size = assumed if output_size is None else tuple(output_size)[-rank:]
    if output_size is not None and len(output_size) not in (rank, rank + 2):
        raise ValueError(
            f"output_size should be a sequence containing {rank} or {rank + 2} elements, "
            f"but it has a length of '{len(output_size)}'"
        )
    for dim, (wanted, default, s) in enumerate(zip(size, assumed, strides)):
        if output_size is not None and not default - s < wanted < default + s:
            raise ValueError(
                f'invalid output_size "{tuple(output_size)}" '
                f"(dim {dim} must be between {default - s} and {default + s})"
            )
    if any(n <= 0 for n in x.shape[1:]):
        raise RuntimeError(
            f"{name}(): expected an input whose sizes are all positive but for the batch, "
            f"but got input of size {list(input.shape)}"
        )
    size = tuple(as_int(n) for n in size)
    if min(size) < 0:
        raise ValueError(f"{name}(): expected sizes of the output that are not negative, but they would be {size}")
    if min(size) == 0:  # torch looks at no index then
        y = x.flatten(2)[..., :0].reshape(*x.shape[:2], *size)
    else:
        y = autograd.max_unpool(x, indices if x is input else indices.unsqueeze(0), IndexGeometry(size))
    return y if x is input else y.squeeze(0)
