"""Several processes that train together: the same losses as one, nothing lost, nothing twice."""

import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from files import ROOT
from lives import die_in_step, events, losses, run_life, run_together, same, signal_in_step, weights
from torch.testing import assert_close

from torchconv.training import data
from torchconv.training.batches import Batches
from torchconv.training.distributed import World

# 149 images in batches of 21 or 22: the parts of two and of three processes differ in size
SETTINGS = ["--limit-train", 149, "--batch-size", 22, "--epochs", 4, "--lr", 0.05, "--augment", "flip,erase"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process does: the run's folder."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_life([*SETTINGS, "--runs-dir", folder, "--name", "run"], log=folder / "log") == 0
    return folder / "run"


@pytest.mark.parametrize("size", [2, 3])
def test_same_losses_as_one_process(size, alone, tmp_path):
    log = tmp_path / "log"
    assert run_together(size, [*SETTINGS, "--runs-dir", tmp_path, "--name", "run"], log=log) == [0] * size
    together = tmp_path / "run"
    assert_close(torch.tensor(losses(together)), torch.tensor(losses(alone)), rtol=1e-5, atol=0)
    for kind, names in (("epoch", ("loss", "validation_loss", "validation_accuracy")), ("test", ("loss", "accuracy"))):
        ours, theirs = (
            torch.tensor([[event[name] for name in names] for event in events(folder, kind)])
            for folder in (together, alone)
        )
        assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert [event["processes"] for event in events(together, "run")] == [size]
    assert len(re.findall("test accuracy", log.read_text())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"log", "run"}


def test_a_process_that_dies_ends_the_run(alone, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = [*SETTINGS, "--checkpoint-every", 2, "--runs-dir", tmp_path, "--name", "run"]
    assert run_together(2, arguments, {1: partial(die_in_step, 13)}, log) == [2, -signal.SIGKILL], log.read_text()
    assert re.search(
        "train.py: error: another process of this run was lost .*: continue from the last checkpoint by --resume\n$",
        log.read_text(),
    )
    assert "Traceback" not in log.read_text()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (1, 4)
    assert run_together(2, ["--resume", folder], log=log) == [0, 0]
    assert_close(torch.tensor(losses(folder)), torch.tensor(losses(alone)), rtol=1e-5, atol=0)


def test_a_signal_to_one_process_stops_all_after_the_same_step(alone, tmp_path):
    """And another number of processes can go on."""
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = [*SETTINGS, "--runs-dir", tmp_path, "--name", "run"]
    assert run_together(2, arguments, {1: partial(signal_in_step, signal.SIGTERM, 10)}, log) == [143, 143]
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (1, 3)
    assert len(saved["losses"]) == 3
    assert len(saved["random"]) == 2
    assert run_life(["--resume", folder], log=log) == 0
    assert_close(torch.tensor(losses(folder)), torch.tensor(losses(alone)), rtol=1e-5, atol=0)
    assert_close(weights(folder), weights(alone), rtol=1e-3, atol=1e-5)


def test_resumed_together_bit_for_bit(tmp_path):
    arguments = [*SETTINGS, "--runs-dir", tmp_path, "--name"]
    log = tmp_path / "log"
    assert run_together(2, [*arguments, "whole"], log=log) == [0, 0]
    stop = partial(signal_in_step, signal.SIGINT, 10)
    assert run_together(2, [*arguments, "stopped"], {0: stop}, log) == [130, 130]
    assert run_together(2, ["--resume", tmp_path / "stopped"], log=log) == [0, 0]
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_torchrun(tmp_path):
    """As a user calls it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, ROOT / "train.py", "--epochs", "1", "--limit-train", "64", "--runs-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(r"cpu, 2 processes\n(.*\n)*test accuracy: .* %\n$", result.stdout)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_image_goes_to_one_process(size):
    digits = data.load("digits", ".")
    seen, order = [], []
    for rank in range(size):
        batches = Batches(digits.test, digits, 32, torch.device("cpu"), World(rank, rank, size))
        assert len(batches) == 12
        seen += [image for images, _ in batches.in_order() for image in images.flatten(1)]
        order.append([labels.tolist() for _, labels in batches.shuffled(0, 1)])
    assert len(seen) == len(digits.test)
    assert len({tuple(image.tolist()) for image in seen}) == len(digits.test.images.flatten(1).unique(dim=0))
    whole = [labels.tolist() for _, labels in Batches(digits.test, digits, 32, torch.device("cpu")).shuffled(0, 1)]
    for number, labels in enumerate(whole):  # each batch is dealt out like cards
        assert [ranks[number] for ranks in order] == [labels[rank::size] for rank in range(size)]


def test_batch_for_fewer_images_than_processes(tmp_path):
    log = tmp_path / "log"
    assert run_together(2, ["--batch-size", 1, "--runs-dir", tmp_path, "--name", "run"], log=log) == [2, 2]
    assert "--batch-size 1 is less than one image for each of 2 processes" in log.read_text()
    assert not (tmp_path / "run").exists()
