"""A run that is killed, stopped or fails, and is then continued, ends as if nothing had happened."""

import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from files import tree
from lives import (
    die_after_the_new_name,
    die_before_the_new_name,
    die_between_metrics_and_checkpoint,
    die_when_half_a_checkpoint_is_written,
    die_when_half_a_line_is_logged,
    die_while_a_picture_is_drawn,
    events,
    losses,
    run_life,
    same,
    signal_in_evaluation,
    signal_in_step,
    start_life,
    weights,
)

from torchconv.models import LeNet5
from torchconv.training.checkpoint import random_states, set_random_states

SETTINGS = ["--limit-train", 160, "--batch-size", 16, "--checkpoint-every", 2, "--augment", "contrast,erase"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing happened to, and how long it took: settings, folder, seconds."""
    folder = tmp_path_factory.mktemp("reference")
    settings = [*SETTINGS, "--epochs", 12]
    start = time.monotonic()
    assert run_life([*settings, "--runs-dir", folder, "--name", "run"], log=folder / "log") == 0
    return settings, folder / "run", time.monotonic() - start


def command(settings, folder):
    return ["--resume", folder] if folder.exists() else [*settings, "--runs-dir", folder.parent, "--name", folder.name]


def check_equal(folder, reference):
    assert same(weights(folder), weights(reference))
    assert same(weights(folder, "best.pt"), weights(reference, "best.pt"))
    assert losses(folder) == losses(reference)
    assert [e["accuracy"] for e in events(folder, "test")] == [e["accuracy"] for e in events(reference, "test")]
    assert not list(folder.glob(".*"))


def test_killed_at_random_moments(reference, tmp_path):
    """SIGKILL, ten times, wherever the process is: while it starts, in a step, writing, evaluating."""
    settings, expected, seconds = reference
    folder, log = tmp_path / "run", tmp_path / "log"
    moments = random.Random(time.time_ns())
    kills = unfinished = 0
    while kills < 10:
        process = start_life(command(settings, folder), log=log)
        process.join(moments.uniform(0, seconds / 8))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            unfinished += bool(list(folder.glob(".*.unfinished")))
        else:  # on a machine that is faster than a moment ago
            assert process.exitcode == 0, log.read_text()
            check_equal(folder, expected)
            folder = tmp_path / f"run after {kills} kills"
    print(f"{unfinished} of {kills} kills left a half-written file")
    assert run_life(command(settings, folder), log=log) == 0, log.read_text()
    check_equal(folder, expected)


def test_killed_while_writing(reference, tmp_path):
    settings, expected, _ = reference
    folder, log = tmp_path / "run", tmp_path / "log"
    accidents = [
        die_when_half_a_checkpoint_is_written,
        die_before_the_new_name,
        die_when_half_a_line_is_logged,
        die_between_metrics_and_checkpoint,
        die_after_the_new_name,
    ]
    for accident in 2 * accidents:
        assert run_life(command(settings, folder), accident, log) == -signal.SIGKILL, log.read_text()
        left = {path.name for path in folder.glob(".*")}
        assert left == ({".checkpoint.pt.unfinished"} if accident in accidents[:2] else set())
    assert run_life(command(settings, folder), log=log) == 0, log.read_text()
    check_equal(folder, expected)


@pytest.mark.parametrize(
    ("accident", "status", "done"),
    [
        (partial(signal_in_step, signal.SIGINT, 13), 130, 13),
        (partial(signal_in_step, signal.SIGTERM, 20), 143, 20),  # the last of an epoch
        (partial(signal_in_evaluation, signal.SIGTERM, 2), 143, 20),
        (partial(signal_in_evaluation, signal.SIGINT, 13), 130, 120),  # on the test images
    ],
    ids=["step", "last step", "validation", "test"],
)
def test_stopped_by_a_signal(accident, status, done, reference, tmp_path):
    """What was begun is finished and saved: not one step is repeated afterwards."""
    settings, expected, _ = reference
    settings = [value for value in settings if value not in ("--checkpoint-every", 2)]
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run_life(command(settings, folder), accident, log) == status, log.read_text()
    name = signal.Signals(status - 128).name
    assert log.read_text().endswith(
        f"\ntrain.py: stopped by {name}, everything is saved; continue with: python train.py --resume {folder}\n"
    )
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 10 * saved["epoch"] + saved["batch"] == done
    assert run_life(["--resume", folder], log=log) == 0
    assert [event["step"] for event in events(folder, "run")] == [0, done]
    check_equal(folder, expected)


def test_killed_while_drawing(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    settings = ["--limit-train", 32, "--epochs", 1]
    assert run_life(command(settings, folder), die_while_a_picture_is_drawn, log) == -signal.SIGKILL
    assert run_life(["--resume", folder], log=log) == 0
    assert log.read_text().endswith("%\n")
    assert len(events(folder, "test")) == 1
    before = tree(folder)
    assert run_life(["--resume", folder], log=log) == 0  # now that it is finished
    assert log.read_text().endswith(f"{folder} is finished: nothing is left to do\n")
    assert tree(folder) == before


def test_random_states():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    state = random_states()
    drawn = draw()
    assert all(a != b for a, b in zip(draw(), drawn, strict=True))
    set_random_states(state)
    assert draw() == drawn


def test_random_states_are_continued(start, monkeypatch):
    """With dropout, whose random numbers are drawn from the state that a checkpoint holds."""

    class Dropout(LeNet5):
        def forward(self, images):
            return super().forward(torch.nn.functional.dropout(images, 0.3, self.training))

    monkeypatch.setattr("torchconv.training.network.LeNet5", Dropout)
    settings = ["--epochs", 2, "--limit-train", 64]
    whole = start(*settings, name="whole")[3]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", torch.optim.SGD.step)  # put back afterwards
        signal_in_step(signal.SIGTERM, 3)
        status, _, _, stopped = start(*settings, name="stopped")
    assert status == 143
    torch.manual_seed(99)
    assert start("--resume", stopped)[0] == 0
    assert losses(stopped) == losses(whole)
    assert same(weights(stopped), weights(whole))
