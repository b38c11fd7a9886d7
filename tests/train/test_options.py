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


def test_config_file_and_command_line(tmp_path):
    file = tmp_path / "night.toml"
    file.write_text('lr = 0.5\nepochs = 7\nchannels-last = true\naugment = ["flip", "erase"]\nmodel = "resnet18"\n')
    options = parse(["--config", str(file), "--epochs", "3", "--no-channels-last"])
    assert (options.lr, options.epochs, options.channels_last, options.model) == (0.5, 3, False, "resnet18")
    assert options.augment == ("flip", "erase")
    assert options.batch_size == parse([]).batch_size
    assert parse(["--epochs", "3", "--config", str(file)]).epochs == 3  # wherever it stands


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr = ", "is no TOML file: "),
        ("epochs = 0", "argument --epochs: 0 is out of range"),
        ("epoch = 3", "unrecognized arguments: --epoch=3"),
        ('augment = ["upside-down"]', "argument --augment: 'upside-down' is none of flip, contrast, erase"),
        ('resume = "runs/x"', "resume belongs on the command line"),
        ("[training]\nlr = 1", "training is not an option"),
        ("tensorboard = 1", "argument --tensorboard/--no-tensorboard: ignored explicit argument '1'"),
        (None, "cannot read "),
    ],
)
def test_wrong_config_file(content, message, tmp_path, capsys):
    file = tmp_path / "night.toml"
    if content is not None:
        file.write_text(content)
    assert train.main(["--config", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("train.py: error: ")
    assert str(file) in err
    assert message in err
    assert err.count("\n") == 1


def test_defaults_depend_on_the_optimizer():
    assert parse([]).lr == 0.02
    assert parse(["--optimizer", "adamw"]).lr == 0.001
    assert parse(["--optimizer", "adamw", "--lr", "0.3"]).lr == 0.3


def test_image_size_is_for_folders(capsys):
    assert train.main(["--image-size", "64"]) == 2
    assert "--image-size is for --dataset folder" in capsys.readouterr().err
