"""Convolution and pooling for PyTorch from first principles.

`from torchconv import nn` replaces torch.nn; `torchconv.functional` replaces the convolutions and poolings of
torch.nn.functional; `torchconv.backend("triton")` runs the GPU kernels on CPU tensors through Triton's interpreter.
For models that exist already, `torchconv.convert(model)` changes their modules, `torchconv.fuse(model)` fuses
convolution, ReLU and max pooling, and `with torchconv.override():` routes the functions that they call.
"""

import importlib.metadata
import warnings

from torchconv import flops, functional, models, nn
from torchconv.backend import backend, other_kernels
from torchconv.convert import Report, convert, fuse, revert
from torchconv.override import override

flops.register_with_counter()

if _message := other_kernels():
    warnings.warn(_message, stacklevel=2)

try:
    __version__ = importlib.metadata.version("torchconv")  # that of the tag it was built from
except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0"
__all__ = ["Report", "backend", "convert", "functional", "fuse", "models", "nn", "override", "revert"]
