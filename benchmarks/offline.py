"""Compile kernels for a GPU that is not there, by running the real launchers.

    with compiling_for("sm_90") as kernels:
        triton_kernels.conv_fprop(x, w, bias, geometry, memory_format)

Triton's driver is replaced by one that knows what a target is and launches nothing.  All the rest is what happens on
that GPU: the launcher's choices, Triton's specialisation of the arguments, the compiler, and the refusal of a kernel
that takes more shared memory than there is.  Tensors may be on the CPU or, since nobody reads them, on the meta device.

Needs a process without TRITON_INTERPRET; run with Triton 3.8.0.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from triton_kernels import INTERPRETED


class Device(NamedTuple):
    """A target, and how many bytes of shared memory one block may take on it."""

    target: GPUTarget
    shared: int


TARGETS = {
    "sm_80": Device(GPUTarget("cuda", 80, 32), 166_912),
    "sm_90": Device(GPUTarget("cuda", 90, 32), 232_448),
    "sm_100": Device(GPUTarget("cuda", 100, 32), 232_448),
    "gfx942": Device(GPUTarget("hip", "gfx942", 64), 65_536),
}


class Compiled(NamedTuple):
    """A kernel that a launch compiled.

    Attributes:
        name: the kernel's function.
        constants: its constexpr arguments by name.
        kernel: Triton's CompiledKernel.
    """

    name: str
    constants: dict[str, Any]
    kernel: Any


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[Compiled]]:
    """Compile for the target `name` inside the `with` block; yields the list of kernels, each once, as they come.

    Raises:
        RuntimeError: kernels are interpreted in this process.
    """
    if INTERPRETED:
        raise RuntimeError("compiling needs a process without the environment variable TRITON_INTERPRET")
    compiled: dict[str, Compiled] = {}
    active, run, hip = triton.runtime.driver._active, JITFunction.run, torch.version.hip

    def recording_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **kwargs)
        if kernel is not None and kernel.hash not in compiled:
            names = [self.arg_names[path[0]] for path in kernel.src.constants]
            constants = dict(zip(names, kernel.src.constants.values()))
            compiled[kernel.hash] = Compiled(self.__name__, constants, kernel)
            order.append(compiled[kernel.hash])
        return kernel

    order: list[Compiled] = []
    triton.runtime.driver.set_active(_Driver(TARGETS[name]))
    JITFunction.run = recording_run
    # What launchers tell AMD's GPUs by: a release, which nobody compares.
    torch.version.hip = "any" if TARGETS[name].target.backend == "hip" else None
    _forget_compiled()
    try:
        yield order
    finally:
        JITFunction.run, torch.version.hip = run, hip
        for entry in order:
            entry.kernel.module = None  # nothing was loaded, so nothing is to be unloaded
        triton.runtime.driver._active = active
        _forget_compiled()


def _forget_compiled() -> None:
    """Triton keeps kernels by device number, and all targets here are device 0."""
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "triton_kernels"]
    for value in (value for module in ours for value in vars(module).values()):
        if isinstance(value, JITFunction):
            value.device_caches.clear()


class _Utils:
    def __init__(self, device: Device) -> None:
        self._device = device

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024  # module, function, registers, spills, most threads per block

    def unload_module(self, *args: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._device.shared,
            "multiprocessor_count": 132,
            "warpSize": self._device.target.warp_size,
        }


class _Driver:
    """As much of Triton's DriverBase as specialising and compiling takes."""

    def __init__(self, device: Device) -> None:
        self._target, self.utils = device.target, _Utils(device)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *args: None
