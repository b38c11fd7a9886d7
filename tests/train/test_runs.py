"""The folder of a run, and what may go wrong with it."""

import io
import sys
from pathlib import Path

import pytest
import torch
from files import TINY, tree

import train
from torchconv.training.progress import progress
from torchconv.training.runs import Run, read_tensors


def test_name_in_use(start):
    *_, folder = start(*TINY)
    before = tree(folder)
    status, out, err, _ = start(*TINY)
    assert (status, out) == (2, "")
    assert err == f"train.py: error: {folder} exists already: give this run another --name\n"
    assert tree(folder) == before


def test_runs_folder_that_cannot_be_written(tmp_path, capfd):
    (tmp_path / "runs").write_text("a file, not a folder")
    status = train.main([*TINY, "--runs-dir", str(tmp_path / "runs" / "below"), "--name", "run"])
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err == f"train.py: error: cannot write the results to {tmp_path}/runs/below/run: Not a directory\n"


def test_runs_folder_without_permission(start, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    status, out, err, folder = start(*TINY)
    assert (status, out) == (2, "")
    assert err == f"train.py: error: cannot write the results to {folder}: Permission denied\n"


class Unwritable:
    def __reduce__(self):
        raise RuntimeError("cannot be pickled")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.save("best.pt", {"kind": "test", "epoch": 1})
    before = tree(run.folder)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        run.save("best.pt", {"weights": torch.zeros(1000), "epoch": Unwritable()})
    assert tree(run.folder) == before
    run.save("best.pt", {"kind": "test", "epoch": 2})
    assert read_tensors(run.folder / "best.pt", "test")["epoch"] == 2


def test_progress_bar_is_for_terminals(monkeypatch):
    screens = []
    for is_terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr(sys, "stderr", screen)
        assert list(progress(range(3), 3, "epoch 1/2")) == [0, 1, 2]
        screens.append(screen.getvalue())
    assert "epoch 1/2" in screens[0]
    assert screens[1] == ""
