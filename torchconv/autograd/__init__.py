"""The mathematics: autograd Functions whose backward passes are other Functions of this package.

Nothing here computes an array (`torchconv.ops` does) or checks an argument (`torchconv.functional` does).
"""

from torchconv.autograd.block import conv_relu_max_pool
from torchconv.autograd.conv import conv, conv_input_grad, conv_weight_grad
from torchconv.autograd.indexed import fractional_max_pool, index_gather, index_scatter, max_unpool
from torchconv.autograd.pool import avg_pool, avg_pool_grad, max_pool, max_pool_gather, max_pool_scatter
from torchconv.ops import winner_index

__all__ = [
    "avg_pool",
    "avg_pool_grad",
    "conv",
    "conv_input_grad",
    "conv_relu_max_pool",
    "conv_weight_grad",
    "fractional_max_pool",
    "index_gather",
    "index_scatter",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "max_unpool",
    "winner_index",
]
