"""The command line and the configuration file."""

import re

import pytest

import train
from torchconv.training.options import parse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet"], "argument --dataset: invalid choice: 'imagenet'"),
        (["--nn", "jax"], "argument --nn: invalid choice: 'jax'"),
        (["--epochs", "0"], "argument --epochs: 0 is out of range"),
        (["--epochs", "1.5"], "argument --epochs: invalid whole number value: '1.5'"),
        (["--batch-size", "-1"], "argument --batch-size: -1 is out of range"),
        (["--lr", "nan"], "argument --lr: nan is out of range"),
        (["--lr", "fast"], "argument --lr: invalid number value: 'fast'"),
        (["--momentum", "1"], "argument --momentum: 1 is out of range: 0 <= value < 1"),
        (["--seed", "-1"], "argument --seed: -1 is out of range"),
        (["--shift", "16"], "argument --shift: 16 is out of range: 0 <= value < 16"),
        (["--name", "../elsewhere"], "argument --name: '../elsewhere' is not the name of a folder"),
        (["--name", ""], "argument --name: '' is not the name of a folder"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_wrong_argument(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    assert f"train.py: error: {message}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_unusable_device(start, device):
    status, out, err, folder = start("--device", device)
    assert (status, out) == (2, "")
    assert re.fullmatch(f"train.py: error: --device {device} cannot be used here: .+\n", err)
    assert not folder.exists()


def test_missing_library(start, monkeypatch):
    monkeypatch.setattr("torchconv.training.find_spec", lambda name: None if name in ("tqdm", "sklearn") else name)
    status, out, err, folder = start()
    assert (status, out) == (2, "")
    assert err == ("train.py: error: training needs tqdm and sklearn, not installed here: pip install -e '.[train]'\n")
    assert not folder.exists()


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for name in vars(parse([])):
        assert re.search(f"\n  --{name.replace('_', '-')}[ ,]", text)
