"""torchvision's data sets: read what lies in the data folder, download what does not, leave nothing half-written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchconv.training import UserError

TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
STALLED_AFTER = 20  # seconds without a byte; torchvision itself would wait for ever


def torchvision_splits(name: str, data_dir: Path) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Training and test part, each as uint8 images `(N, C, H, W)` and int64 labels, and the names of the classes."""
    import torchvision

    source = getattr(torchvision.datasets, TORCHVISION_CLASSES[name])
    wanted, _ = _files(source)
    missing = [file for file in wanted if not (data_dir / file).exists()]
    if missing:
        _download(source, name, data_dir, missing)
    try:
        parts = [source(data_dir, train=train) for train in (True, False)]
    # The files are somebody else's, and torchvision's readers answer a damaged one with whatever it made them trip on.
    except Exception as error:
        raise UserError(
            f"the files of {name} in {(data_dir / wanted[0]).parent} cannot be read ({_one_line(error)}): "
            "remove them and they are downloaded anew, or leave out --dataset to train on the digits"
        ) from error
    tensors = [(_channels_first(part.data), torch.as_tensor(part.targets)) for part in parts]
    return tensors, tuple(label.split(" - ")[0] for label in parts[0].classes)  # MNIST's are "0 - zero", ...


def _channels_first(data: Any) -> Tensor:
    """MNIST and its kin hold `(N, H, W)`, CIFAR `(N, H, W, C)`."""
    images: Tensor = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _files(source: Any) -> tuple[list[Path], list[Path]]:
    """The files that a torchvision class reads, and the archives that they come from, below its root."""
    if hasattr(source, "resources"):  # MNIST and its kin
        folder = Path(source.__name__, "raw")
        archives = [folder / archive for archive, _ in source.resources]
        return [archive.with_suffix("") for archive in archives], archives
    names = [name for name, _ in source.train_list + source.test_list] + [source.meta["filename"]]
    return [Path(source.base_folder, name) for name in names], [Path(source.filename)]


def _download(source: Any, name: str, data_dir: Path, missing: list[Path]) -> None:
    """Let torchvision download into a folder of its own, then move the missing files, whole, to their place."""
    folder = (data_dir / missing[0]).parent
    # Beside the target, so that moving is renaming; not in it while it does not exist, so that a failure leaves none.
    nearest = next(path for path in (data_dir, *data_dir.absolute().parents) if path.exists())
    print(f"{name} is not in {folder}: downloading", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=nearest) as name_of_temporary:
            temporary = Path(name_of_temporary)
            for archive in _files(source)[1]:  # torchvision unpacks these, if they are sound, and downloads the others
                if (data_dir / archive).is_file():
                    (temporary / archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(data_dir / archive, temporary / archive)
            with _torchvision_kept_short():
                source(temporary, train=True, download=True)
            for file in missing:
                (data_dir / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / file, data_dir / file)
    # urllib, gzip, tarfile and torchvision all have exceptions of their own here; the answer to each is the same.
    except Exception as error:
        raise UserError(
            f"{name} is not in {folder} and could not be downloaded ({_one_line(error)}): put its files there, "
            "or leave out --dataset: the default, digits, needs no download"
        ) from error


@contextlib.contextmanager
def _torchvision_kept_short() -> Iterator[None]:
    """No endless wait for a silent server, and no progress bar in a log file."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
