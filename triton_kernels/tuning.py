"""Which tile a layer's kernel runs with: the one that `configs` picks by shape, or the fastest, timed once per layer.

The environment variable TORCHCONV_TUNE decides, when this package is imported:

    heuristic   `configs` picks; nothing is timed, read or written.  The default.
    cached      what an earlier process has measured for this layer on this kind of GPU; else as above.
    measure     what has not been measured is, before the layer's first launch, and is kept for later processes.

Results are kept in torchconv/tiles.json in the user's cache directory.  A layer is its sizes, window, type and memory
format, without the batch size: the last, short batch of an epoch does not tune again.  Tiles differ in the order in
which a dot sums its products, so results may differ in their last bits between tiles, but not between runs with the
same file; how wgrad splits its sum does not depend on the tile.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton
from torch import Tensor

from triton_kernels import configs
from triton_kernels.configs import Tile
from triton_kernels.launch import ConvGeometry, dot_precision

MODES = ("heuristic", "cached", "measure")
_SIZES = ("input", "output", "kernel", "stride", "padding", "dilation")


class Tuner:
    """Tiles by layer, in memory and in the file `path`; `time` takes a launch and returns how long it runs."""

    def __init__(self, mode: str, path: Path, time: Callable[[Callable[[], object]], float]) -> None:
        if mode not in MODES:
            raise ValueError(f"TORCHCONV_TUNE must be one of {MODES}, but got {mode!r}")
        self.mode, self._path, self._time = mode, path, time
        self._known: dict[str, list[int]] | None = None

    def choose(self, layer: str, tiles: Sequence[Tile], default: Tile, launch: Callable[[Tile], object]) -> Tile:
        """One of `tiles`: the one known for `layer`, else the fastest, or `default` if nothing is to be measured."""
        if self.mode == "heuristic":
            return default
        if self._known is None:
            self._known = self._read()
        # A tile that is offered no longer is measured anew.
        known = next((tile for tile in tiles if list(tile) == self._known.get(layer)), None)
        if known is not None or self.mode == "cached":
            return known or default
        best = min((default, *tiles), key=lambda tile: self._time_of(tile, launch))
        self._known[layer] = list(best)
        self._write(layer, best)
        return best

    def _time_of(self, tile: Tile, launch: Callable[[Tile], object]) -> float:
        try:
            return self._time(lambda: launch(tile))
        except triton.runtime.errors.OutOfResources:  # more shared memory than this GPU has
            return float("inf")

    def _read(self) -> dict[str, list[int]]:
        try:
            found = json.loads(self._path.read_text())
            if not isinstance(found, dict) or not all(isinstance(tile, list) for tile in found.values()):
                raise ValueError("not an object of lists")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:  # a JSON or Unicode error is a ValueError
            warnings.warn(f"cannot use the tuning results in {self._path}, going without: {error}", stacklevel=2)
            return {}
        return found

    def _write(self, layer: str, tile: Tile) -> None:
        """Add one result to what other processes have left by now.

        The file is replaced as a whole, so that nobody reads half of one.  Of two processes that write at once, one may
        lose a result, which somebody measures again.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():  # said already, when this process first read it
                warnings.simplefilter("ignore")
                results = {**self._read(), layer: list(tile)}
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(results, file, indent=0)
                os.replace(name, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(name)
                raise
        except OSError as error:
            warnings.warn(f"tuning results cannot be kept in {self._path}: {error}", stacklevel=2)


def tuned(
    kernel: str,
    x: Tensor,
    w: Sequence[int],
    geometry: ConvGeometry,
    tiles: Sequence[Tile],
    default: Tile,
    launch: Callable[[Tile], object],
    wide: bool,
    **details: object,
) -> None:
    """Launch a kernel, on the current device, with the tile for its layer; `launch` takes the tile.

    Args:
        kernel: its launcher's name.
        x: any operand, for the type and the device.
        w: the weight's size.
        geometry: the sizes that all launchers take.
        tiles: all that the kernel can be launched with.
        default: the one that the shape suggests.
        wide: whether offsets take 64 bits: then it is the default, since the registers of others may not suffice.
        details: what else tells layers apart.
    """
    if forced := configs.forced_tile():
        default = forced
    elif tuner.mode != "heuristic" and not wide and (gpu := _gpu(x)):
        sizes = {name: tuple(getattr(geometry, name)) for name in _SIZES}
        details |= {**sizes, "groups": geometry.groups, "padding_mode": geometry.padding_mode, "w": tuple(w)}
        names = [gpu, triton.__version__, kernel, str(x.dtype), dot_precision(x)]
        layer = " | ".join([*names, *(f"{name}={details[name]}" for name in sorted(details))])
        default = tuner.choose(layer, tiles, default, launch)
    launch(default)


def _gpu(x: Tensor) -> str | None:
    """The kind of GPU that `x` is on, if launches on it can be timed now."""
    if not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.get_device_name(x.device)


def _bench(launch: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(launch, warmup=5, rep=20, return_mode="median"))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchconv" / "tiles.json"


tuner = Tuner(os.environ.get("TORCHCONV_TUNE", "heuristic"), _cache(), _bench)
