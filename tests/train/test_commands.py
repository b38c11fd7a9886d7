"""What was trained is used: evaluate, predict, export."""

import json
import re
import shutil

import pytest
import torch
from files import tree, write_images
from lives import events, run_life

import train
from torchconv.training import data
from torchconv.training.folder import read_image
from torchconv.training.weights import rebuild


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on three classes of images that are easy to tell apart: its folder and that of the images."""
    folder = tmp_path_factory.mktemp("trained")
    images = write_images(folder / "images", test=5)
    settings = ["--dataset", "folder", "--data-dir", images, "--device", "cpu"]
    settings += ["--epochs", 10, "--batch-size", 6, "--shift", 0]
    assert run_life([*settings, "--runs-dir", folder, "--name", "run"], log=folder / "log") == 0
    return folder / "run", images


def call(capsys, *arguments):
    try:
        status = train.main(list(map(str, arguments)))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_evaluate(trained, capsys):
    folder, _ = trained
    before = tree(folder)
    status, out, err = call(capsys, "evaluate", folder)
    assert (status, err) == (0, "")
    [test] = events(folder, "test")
    assert f"test loss {test['loss']:.4f}, accuracy {100 * test['accuracy']:.2f} %\n" in out
    assert re.search(r"^  1 ant +5  100\.00 % +5 +\. +\.$", out, re.M)
    assert tree(folder) == before


def test_report_counts(capsys):
    from torchconv.training.commands import print_report

    print_report(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1]), ["ant", "bee", "cat"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split() == ["1", "ant", "3", "66.67", "%", "2", "1", "."]
    assert rows[2].split() == ["2", "bee", "2", "100.00", "%", ".", "2", "."]
    assert rows[3].split() == ["3", "cat", "0", "-", ".", ".", "."]


def test_predict(trained, capsys):
    folder, images = trained
    paths = [images / "test" / name / "000.png" for name in ("cat", "ant")]
    status, out, err = call(capsys, "predict", folder, *paths, "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for line, path, best in zip(lines, paths, ("cat", "ant"), strict=True):
        assert re.fullmatch(rf"{re.escape(str(path))}: {best} (\d+\.\d) %, \w+ (\d+\.\d) %", line)
    network, kept = rebuild(folder, "torch")
    mean, std = (torch.tensor(kept[name]).view(-1, 1, 1) for name in ("mean", "std"))
    probability = network(((read_image(paths[0], 3, 32) - mean) / std)[None]).softmax(1)[0, 2].item()
    assert f"cat {100 * probability:.1f} %" in lines[0]


def test_export(trained, capsys, tmp_path):
    folder, images = trained
    file = tmp_path / "model.pt2"
    status, out, err = call(capsys, "export", folder, file)
    assert (status, err) == (0, "")
    assert "float32 images (N, 3, 32, 32)" in out
    program = torch.export.load(file).module()
    test = data.load("folder", images).test
    for part in (test.images, test.images[:1]):  # any number of images
        assert torch.equal(program(part.float()).argmax(1), test.labels[: len(part)])
    before = tree(tmp_path)
    assert call(capsys, "export", folder, file)[::2] == (
        2, f"train.py: error: {file} exists already: give another name\n",
    )  # fmt: skip
    assert tree(tmp_path) == before


def test_export_says_what_is_missing(trained, capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no fake implementation of torchconv::conv")

    monkeypatch.setattr(torch.export, "export", fail)
    status, _, err = call(capsys, "export", trained[0], tmp_path / "model.pt2")
    message = "torch.export cannot trace this network: no fake implementation of torchconv::conv"
    assert (status, err) == (2, f"train.py: error: {message}\n")
    assert not any(tmp_path.iterdir())


def test_other_number_of_classes(trained, capsys, tmp_path):
    images = write_images(tmp_path / "images", classes=("ant", "bee"))
    status, _, err = call(capsys, "evaluate", trained[0], "--data-dir", images)
    assert status == 2
    assert err == (
        f"train.py: error: folder has 2 classes (ant, bee), but {trained[0]} was trained on 3 (ant, bee, cat)\n"
    )


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "some.png"], ["export", "model.pt2"]])
def test_run_without_weights(command, trained, capsys, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    status, _, err = call(capsys, command[0], tmp_path / "run", *command[1:])
    assert (status, err) == (2, f"train.py: error: {tmp_path}/run/best.pt is not there\n")
    status, _, err = call(capsys, command[0], tmp_path / "nothing", *command[1:])
    assert status == 2
    assert err.startswith(f"train.py: error: {tmp_path}/nothing is not the folder of a run")


def test_image_that_is_none(trained, capsys, tmp_path):
    (tmp_path / "x.png").write_text("x")
    status, out, err = call(capsys, "predict", trained[0], tmp_path / "x.png")
    assert (status, out) == (2, "")
    assert err.startswith(f"train.py: error: {tmp_path}/x.png cannot be read as an image (")
    assert call(capsys, "predict", trained[0], tmp_path / "no.png")[2] == (
        f"train.py: error: {tmp_path}/no.png cannot be read as an image (No such file or directory)\n"
    )


def test_the_folder_says_how_the_run_was_made(trained):
    about = json.loads((trained[0] / "run.json").read_text())
    assert about["options"]["seed"] == 0
    assert about["options"]["dataset"] == "folder"
    assert about["device"] == "cpu"
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert set(about) >= {"started", "command", "commit", "processes", "threads", "on"}
