"""Memory formats, by torch's own rule: strides decide, also where sizes of 1 let both formats hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The order in which channels_last lays dimensions out, the fastest first, by their number.
_CHANNELS_LAST = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
_CONTIGUOUS = torch.contiguous_format


def format_of(size: Sequence[int], stride: Sequence[int]) -> torch.memory_format:
    """The format of a tensor of this size and stride: channels_last if the strides order a 4-D or 5-D one as N, *, C.

    A tensor for which both orders hold (one channel, or one pixel) counts as what its strides say, and one whose
    channels are one channel expanded as contiguous: torch's own rule.
    """
    if len(size) not in _CHANNELS_LAST or stride[1] == 0:
        return _CONTIGUOUS
    least = 0
    for dim in _CHANNELS_LAST[len(size)]:
        if size[dim] == 0 or stride[dim] < least or (dim == 0 and least == stride[1]):
            return _CONTIGUOUS
        least = stride[dim] * size[dim]
    return torch.channels_last if len(size) == 4 else torch.channels_last_3d


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """The format of a result of these tensors: channels_last if one of them is."""
    for t in tensors:
        stride = t.stride()
        # The first follows from the second: of most tensors it says no, and their size is not asked for.
        if stride[-1] >= stride[1] and (format := format_of(t.shape, stride)) != _CONTIGUOUS:
            return format
    return _CONTIGUOUS


def arranged(t: Tensor, format: torch.memory_format) -> Tensor:
    """The values of `t`, dense in a memory format: `t` itself if it is that.

    Where sizes of 1 let both formats hold, other strides over the same memory: strides are what the operators go by.
    """
    compiled = 1 in t.shape and torch.compiler.is_compiling()
    if compiled:
        # A gradient's strides, where its sizes are 1, may be others than tracing saw.  This makes a tensor that has the
        # ones that it saw, and the compiler does not leave it out, as it would a copy or a view.
        t = t.neg().neg()
    if format == torch.contiguous_format:
        t = t.contiguous()
        return t.view(-1).view(t.shape) if 1 in t.shape else t
    if t.numel() == 0:
        return torch.empty_like(t, memory_format=format)
    if not compiled and memory_format(t) == format and t.is_contiguous(memory_format=format):
        return t
    last = t.movedim(1, -1)
    return last.contiguous().view(-1).view(last.shape).movedim(-1, 1)
