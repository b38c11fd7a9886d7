"""The folder of a run: how it was made, metrics, weights and pictures, none of them ever half-written."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from platform import platform, python_version
from typing import Any

import torch

from torchconv.training import UserError

ABOUT, METRICS = "run.json", "metrics.jsonl"


class Run:
    """The folder of one run, new (`Run.create`) or continued (`Run.reopen`).

    Args:
        folder: where everything is.
        writes: whether this process writes; of several that train together only one does, and to the others
            `log`, `save` and `replacing` do nothing.

    Attributes:
        listeners: called with every event that is logged.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._metrics = open(folder / METRICS, "ab") if writes else None  # noqa: SIM115 - open as long as the run

    @classmethod
    def create(cls, folder: Path, about: dict[str, Any], writes: bool = True) -> Run:
        """A new folder, which holds how the run was made from the moment that it exists."""
        if writes:
            refuse_existing(folder)
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                unfinished.chmod(0o755)
                try:
                    (unfinished / METRICS).touch()
                    (unfinished / ABOUT).write_text(json.dumps(about, indent=2, default=str) + "\n")
                    os.rename(unfinished, folder)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
            except OSError as error:
                raise UserError(f"cannot write the results to {folder}: {error.strerror}") from error
        return cls(folder, writes)._locked() if writes else cls(folder, writes)

    @classmethod
    def reopen(cls, folder: Path, writes: bool = True) -> Run:
        """The folder of a run that did not come to its end, without what it left half-written."""
        try:
            run = cls(folder, writes)._locked() if writes else cls(folder, writes)
            for unfinished in folder.glob(".*.unfinished") if writes else ():
                unfinished.unlink()
        except OSError as error:
            raise UserError(f"cannot write the results to {folder}: {error.strerror}") from error
        return run

    def _locked(self) -> Run:
        """Two processes that continue one run would spoil it; the lock goes with the process, however that ends."""
        assert self._metrics is not None
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._metrics.close()
            raise UserError(f"{self.folder} is being written by another process") from error
        return self

    def log(self, *events: dict[str, Any]) -> None:
        """Append to the metrics, one JSON object per line."""
        if self._metrics is None:
            return
        try:
            self._metrics.write("".join(json.dumps(event, default=str) + "\n" for event in events).encode())
            self._metrics.flush()
        except OSError as error:
            raise cannot_write(self.folder / METRICS, error) from error
        for event in events:
            for listener in self.listeners:
                listener(event)

    def log_size(self) -> int:
        """Bytes of metrics, all of them on the disk when this returns."""
        if self._metrics is None:
            return 0
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def cut_log(self, size: int) -> None:
        """Forget what was logged since the metrics had that many bytes: the continued run will log it again."""
        if self._metrics is not None:
            self._metrics.truncate(size)
            self._metrics.seek(size)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What was logged with `"event": kind`."""
        return read_events(self.folder, kind)

    def save(self, name: str, contents: dict[str, Any]) -> None:
        """Write a file of tensors and plain values that `read_tensors` reads."""
        if not self.writes:
            return
        # By way of memory, as torch.save hides in its own errors why a disk did not take the bytes.
        buffer = io.BytesIO()
        torch.save(contents, buffer)
        with self.replacing(name) as path, open(path, "wb") as file:
            file.write(buffer.getbuffer())

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to; the file gets its name when it is whole and on the disk, and is gone if writing failed.

        Whatever happens, power cuts included, `name` is the old file or the new one.
        """
        with replacing(self.folder / name) as path:
            yield path


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """As `Run.replacing`, anywhere."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, target)
        flush(target.parent)  # the name, too, has to reach the disk
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        unfinished.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say of a disk that is full, read-only or broken."""
    return UserError(f"cannot write {path}: {error.strerror}; what was there before is still there")


def refuse_existing(folder: Path) -> None:
    """Nothing is ever written over the results of another run."""
    if not folder.exists():
        return
    if (folder / ABOUT).exists() and not finished(folder):
        raise UserError(f"{folder} exists already: give this run another --name, or continue it: --resume {folder}")
    raise UserError(f"{folder} exists already: give this run another --name")


def read_about(folder: Path) -> dict[str, Any]:
    """How a run was made: what `Run.create` was given."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        if isinstance(about["options"], dict):
            return dict(about)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder} is not the folder of a run: it has no readable {ABOUT}")


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in a run's metrics; a line cut off by a crash does not count."""
    found = []
    for line in (folder / METRICS).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            if (event := json.loads(line)).get("event") == kind:
                found.append(event)
    return found


def finished(folder: Path) -> bool:
    """Whether a run came to its end: its last words are the test accuracy."""
    return (folder / METRICS).exists() and bool(read_events(folder, "test"))


def read_tensors(path: Path, kind: str) -> dict[str, Any]:
    """Read what `Run.save` wrote with `"kind": kind`, onto the CPU; no code in the file is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        contents = torch.load(path, map_location="cpu", weights_only=True) if damaged is None else None
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    # Whatever a truncated or foreign file makes the readers of zip and pickle trip on.
    except Exception as error:
        raise UserError(f"{path} is damaged, or no file of this program ({one_line(error)})") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged} has a wrong checksum)")
    if not isinstance(contents, dict) or contents.get("kind") != kind:
        raise UserError(f"{path} is no {kind} of this program")
    return contents


def one_line(error: BaseException) -> str:
    """The beginning of an error's text, or its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def surroundings(device: torch.device, processes: int) -> dict[str, Any]:
    """What a run depends on beside its options."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "versions": {"python": python_version(), **{name: _version(name) for name in PACKAGES}},
        "on": platform(),
    }


PACKAGES = ("torchconv", "torch", "torchvision", "triton", "numpy")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that the program was started from, with "+changes" if files differ from it; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout else "")
