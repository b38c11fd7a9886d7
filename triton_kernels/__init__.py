"""Triton kernels for training convolution and pooling: forward, input gradient and weight gradient.

Every launcher takes the tensors, a geometry (any object with the sizes `input`, `output`, `kernel`, `stride`, `padding`
and `dilation`, 1 to 3 numbers each, and what its docstring adds), and the memory format of its result.  One and two
spatial dimensions run as three with unit sizes.  Nothing here knows of autograd, and no kernel uses atomics: the same
input gives the same bits.
"""

from triton_kernels.block import block_dgrad, block_fprop, block_wgrad
from triton_kernels.conv_dgrad import conv_dgrad
from triton_kernels.conv_fprop import conv_fprop
from triton_kernels.conv_wgrad import conv_wgrad
from triton_kernels.launch import INTERPRETED
from triton_kernels.pool_avg import avg_pool, avg_pool_grad
from triton_kernels.pool_fractional import fractional_max_pool
from triton_kernels.pool_max import max_pool, max_pool_gather, max_pool_scatter

__all__ = [
    "INTERPRETED",
    "avg_pool",
    "avg_pool_grad",
    "block_dgrad",
    "block_fprop",
    "block_wgrad",
    "conv_dgrad",
    "conv_fprop",
    "conv_wgrad",
    "fractional_max_pool",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
]

if INTERPRETED:
    from triton_kernels.interpreter import repair  # with numpy, which compiled kernels do without

    repair()
