"""Damaged checkpoints, disks that take nothing more, runs that do not fit: one clear line, and nothing is lost."""

import errno
import json
import os
import pickle
import shutil
from functools import partial

import pytest
import torch
from files import TINY, tree, write_mnist
from lives import losses, run_life

import train
from torchconv.training import UserError


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of two epochs that was stopped in the second one."""
    folder = tmp_path_factory.mktemp("interrupted")
    settings = [*TINY[2:], "--epochs", 2, "--device", "cpu", "--runs-dir", folder, "--name", "run"]
    assert run_life(settings, stop_in_second_epoch) == 143
    return folder / "run"


def stop_in_second_epoch():
    from lives import signal, signal_in_step

    signal_in_step(signal.SIGTERM, 3)


@pytest.fixture
def run(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "runs" / "run")


def refused(start, message, *arguments):
    """Exit status 2 and one line."""
    status, out, err, _ = start(*arguments)
    assert (status, err) == (2, f"train.py: error: {message}\n")
    return out


# Checkpoints.


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def one_bit_flipped(path):
    content = bytearray(path.read_bytes())
    place = content.index(torch.load(path, weights_only=True)["model"]["classifier.fc1.weight"].numpy().tobytes()[:64])
    content[place] ^= 1
    path.write_bytes(content)


def text(path):
    path.write_text("not a checkpoint")


def other_tensors(path):
    torch.save({"weights": torch.zeros(3)}, path)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


def program_code(path):
    torch.save({"kind": "checkpoint", "evil": Evil()}, path)


def bare_pickle(path):
    path.write_bytes(pickle.dumps(Evil()))


DAMAGES = [truncated, empty, one_bit_flipped, text, other_tensors, program_code, bare_pickle]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("file", "command"), [("checkpoint.pt", ["--resume"]), ("best.pt", ["predict"])])
def test_damaged_file(damage, file, command, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if file == "best.pt" and damage is one_bit_flipped:
        shutil.copy(run / "checkpoint.pt", run / file)  # only to have a tensor of that name
    damage(run / file)
    before = tree(run)
    assert train.main([*command, str(run), *(["some.png"] if command == ["predict"] else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"train.py: error: {run / file} is ")
    assert err.count("\n") == 1
    assert len(err) < 400
    assert tree(run) == before
    assert not (tmp_path / "evil").exists()


def test_checkpoint_of_another_network(run, start):
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["model"]["classifier.fc3.bias"] = torch.zeros(3)
    torch.save(saved, run / "checkpoint.pt")
    status, _, err, _ = start("--resume", run)
    assert status == 2
    assert err.startswith(f"train.py: error: {run}/checkpoint.pt does not fit this run (")
    assert err.count("\n") == 1


def test_other_options_than_at_the_start(run, start):
    about = json.loads((run / "run.json").read_text())
    about["options"]["epochs"] = 5
    (run / "run.json").write_text(json.dumps(about))
    refused(start, f"{run}/checkpoint.pt cannot be continued: epochs was 2, is 5", "--resume", run)
    refused(start, "--resume continues a run with its own options: leave out --lr", "--resume", run, "--lr", 1)


def test_other_data_than_at_the_start(start, tmp_path):
    raw = write_mnist(tmp_path / "data")
    *_, folder = start("--dataset", "mnist", "--data-dir", tmp_path / "data", "--epochs", 1)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as if it had not come to its end
    shutil.rmtree(raw)
    write_mnist(tmp_path / "data2", train_images=100)
    message = f"{folder}/checkpoint.pt cannot be continued: number of training images was 180, is 90"
    refused(start, message, "--resume", folder, "--data-dir", tmp_path / "data2")


@pytest.mark.parametrize("content", [None, "", "{}", '{"options": 3}', "[]"])
def test_folder_that_is_no_run(content, start, tmp_path):
    folder = tmp_path / "something"
    if content is not None:
        folder.mkdir()
        (folder / "run.json").write_text(content)
    refused(start, f"{folder} is not the folder of a run: it has no readable run.json", "--resume", folder)


def test_run_that_another_process_is_writing(run, start):
    from torchconv.training.runs import Run

    other = Run.reopen(run)
    refused(start, f"{run} is being written by another process", "--resume", run)
    del other


def test_name_of_an_unfinished_run(run, start):
    before = tree(run)
    message = f"{run} exists already: give this run another --name, or continue it: --resume {run}"
    refused(start, message, *TINY)
    assert tree(run) == before


# Disks.


def disk_with_room_for(size):
    """The accident: no file grows beyond `size` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk(run, tmp_path):
    """The operating system itself refuses to write on."""
    before = tree(run)
    log = tmp_path / "log"
    assert run_life(["--resume", run], partial(disk_with_room_for, 300_000), log) == 2
    assert log.read_text().endswith(
        f"\ntrain.py: error: cannot write {run}/checkpoint.pt: File too large; what was there before is still there\n"
    )
    assert "Traceback" not in log.read_text()
    after = tree(run)
    assert {str(path) for path in after} == {str(path) for path in before}
    checkpoint = next(path for path in after if path.name == "checkpoint.pt")
    assert after[checkpoint] == before[checkpoint]
    assert run_life(["--resume", run], log=log) == 0  # with room again
    assert len(losses(run)) == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_error(number, call, run, start, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    before = (run / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        status, _, err, _ = start("--resume", run)
    assert status == 2
    assert err.startswith("train.py: error: cannot write ")
    assert err.endswith(f": {os.strerror(number)}; what was there before is still there\n")
    assert err.count("\n") == 1
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not list(run.glob(".*"))
    assert start("--resume", run)[0] == 0


def test_divergence_keeps_the_last_sound_checkpoint(start, monkeypatch):
    """One bad batch late in the run: the checkpoint before it can still be looked at."""
    original = torch.optim.SGD.step
    steps = []

    def step(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    status, _, err, folder = start("--epochs", 3, "--limit-train", 64, "--checkpoint-every", 1)
    assert (status, err) == (2, "train.py: error: the loss grew beyond all bounds in epoch 2: try a lower --lr\n")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (1, 1)


# What is shown.


def test_debug_shows_where_an_error_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"it has no readable run\.json") as error:
        train.main(["--resume", str(tmp_path), "--debug"])
    assert error.traceback[-1].name == "read_about"  # Python shows it, as for every error that nobody handles


def test_an_error_of_the_program_itself_is_not_hidden(start, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(train, "evaluate", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        start(*TINY)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "not enough memory (CUDA out of memory.): try a smaller"),
        (PermissionError(13, "Permission denied", "x.npy"), "x.npy: Permission denied"),
    ],
)
def test_errors_of_the_machine(error, message, start, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(train, "evaluate", fail)
    status, _, err, _ = start(*TINY)
    assert status == 2
    assert err.startswith(f"train.py: error: {message}")
