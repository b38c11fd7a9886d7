"""Convolution and pooling for PyTorch from first principles.

`from torchconv import nn` replaces torch.nn; `torchconv.functional` replaces the convolutions and poolings of
torch.nn.functional; `torchconv.backend("triton")` runs the GPU kernels on CPU tensors through Triton's interpreter.
"""

from torchconv import functional, models, nn
from torchconv.backend import backend

__version__ = "0.1.0"
__all__ = ["backend", "functional", "models", "nn"]
