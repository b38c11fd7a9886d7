"""train.py from its command line to its files, and the data, downloads and pictures behind it."""

import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from matplotlib.image import imread
from torch.testing import assert_close

from torchconv.models import LeNet5
from torchconv.training import UserError, data, pictures, runs

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train)

MNISTS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
CIFARS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
TINY = ["--epochs", "1", "--limit-train", "64"]


@pytest.fixture
def start(tmp_path, capfd):
    """Call train.py in this process; returns exit status, standard output, standard error and the run's folder."""

    def start(*arguments, name="run"):
        arguments = ["--device", "cpu", *map(str, arguments), "--runs-dir", str(tmp_path / "runs"), "--name", name]
        try:
            status = train.main(arguments)
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr(), tmp_path / "runs" / name

    return start


def events(folder, kind):
    return [e for e in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if e["event"] == kind]


def tree(folder):
    """Every file and folder with its contents, to see that nothing came, went or changed."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# Small data sets in the layouts of torchvision: image n of either part is filled with noise around n.


def idx(values):
    """The IDX format: a magic number with type and dimensions, the sizes, the bytes."""
    head = b"\0\0\x08" + bytes([values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.numpy().tobytes()


def mnist_files(train_images=200, test_images=50):
    generator = torch.Generator().manual_seed(1)
    for part, count in (("train", train_images), ("t10k", test_images)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        yield f"{part}-images-idx3-ubyte", idx(images)
        yield f"{part}-labels-idx1-ubyte", idx((torch.arange(count) % 10).to(torch.uint8))


def write_mnist(folder, name="mnist", **sizes):
    raw = folder / MNISTS[name] / "raw"
    raw.mkdir(parents=True)
    for file, content in mnist_files(**sizes):
        (raw / file).write_bytes(content)
    return raw


def cifar_files(name):
    """File names, contents and, for the class attributes, which of them are for training."""
    fine = name == "cifar100"
    generator = torch.Generator().manual_seed(1)
    for file, count in (("train" if fine else "data_batch_1", 100), ("test" if fine else "test_batch", 20)):
        pixels = torch.randint(256, (count, 3072), dtype=torch.uint8, generator=generator).numpy()
        labels = [n % (100 if fine else 10) for n in range(count)]
        yield file, pickle.dumps({"data": pixels, "fine_labels" if fine else "labels": labels})
    names = [f"class {n}" for n in range(100 if fine else 10)]
    yield ("meta", pickle.dumps({"fine_label_names": names})) if fine else (
        "batches.meta", pickle.dumps({"label_names": names})
    )  # fmt: skip


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar(monkeypatch):
    """Make torchvision expect the small files; returns the class."""

    def prepare(name):
        source = getattr(torchvision.datasets, CIFARS[name])
        sums = [[file, md5(content)] for file, content in cifar_files(name)]
        monkeypatch.setattr(source, "train_list", sums[:1])
        monkeypatch.setattr(source, "test_list", sums[1:2])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums[2][1]})
        return source

    return prepare


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A data host on this machine: a folder to fill, its address, and the paths that were asked for."""
    folder = tmp_path / "server"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{host.server_port}/", asked
        host.shutdown()
        thread.join()


def serve_mnist(monkeypatch, server, without=()):
    folder, address, _ = server
    archives = [(file + ".gz", gzip.compress(content)) for file, content in mnist_files()]
    for file, content in archives:
        if file not in without:
            (folder / file).write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [(file, md5(content)) for file, content in archives])


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# The training itself.


def test_default_run_reads_98_percent_of_unseen_digits(tmp_path):
    """As a user calls it; also that a log file gets neither a progress bar nor anything else on standard error."""
    result = subprocess.run(
        [sys.executable, ROOT / "train.py", "--runs-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    assert (
        len(re.findall(r"^epoch +\d+/30   loss \d\.\d{4} .* accuracy +\d+\.\d\d %  .* images/s$", result.stdout, re.M))
        == 30
    )
    accuracy = re.fullmatch(r"test accuracy: (\d+\.\d\d) %", result.stdout.splitlines()[-1])
    assert float(accuracy[1]) >= 98.0
    assert len(list(tmp_path.glob("????-??-??_??-??-??/best.pt"))) == 1


def test_torch_and_torchconv_take_the_same_steps(start):
    settings = ["--epochs", 2, "--limit-train", 800, "--lr", 0.1, "--seed", 3]
    folders = [start(*settings, "--nn", nn, name=nn)[3] for nn in ("torchconv", "torch")]
    ours, theirs = (torch.tensor([event["loss"] for event in events(folder, "step")]) for folder in folders)
    assert len(ours) == 50
    assert ours[-1] < 0.8 * ours[0]  # while nothing is learnt yet, wrong gradients would go unnoticed
    assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_seed_is_all_that_chance_depends_on(start):
    first, again, other = (
        [event["loss"] for event in events(start(*TINY, "--seed", seed, name=name)[3], "step")]
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_results(start):
    """The folder's files, and that they tell the same story as the output."""
    status, out, err, folder = start("--epochs", 3, "--limit-train", 300, "--lr", 0.05)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pt", "confusion_matrix.png", "filters.png", "learning_curves.png", "metrics.jsonl",
    ]  # fmt: skip
    for picture in folder.glob("*.png"):
        assert imread(picture)[..., :3].std() > 0.05  # not blank

    [run], steps, epochs, [test] = (events(folder, kind) for kind in ("run", "step", "epoch", "test"))
    assert (run["lr"], run["seed"], run["nn"], run["device"]) == (0.05, 0, "torchconv", "cpu")
    assert [event["step"] for event in steps] == list(range(1, 31))
    losses = torch.tensor([event["loss"] for event in steps]).view(3, 10)
    assert_close(losses.mean(1), torch.tensor([event["loss"] for event in epochs]))
    assert [event["next_lr"] for event in epochs] == pytest.approx(
        [0.05 * train.rate_factor(n, 30) for n in (10, 20, 30)]
    )
    for event in epochs:
        assert f"epoch {event['epoch']}/3   loss {event['loss']:.4f}" in out
        assert f"accuracy {100 * event['validation_accuracy']:6.2f} %   {event['images_per_second']:,.0f} im" in out
    assert out.endswith(f"\ntest accuracy: {100 * test['accuracy']:.2f} %\n")

    kept = torch.load(folder / "best.pt", weights_only=True)
    scores = [(event["validation_accuracy"], -event["validation_loss"]) for event in epochs]
    assert kept["epoch"] == test["epoch"] == 1 + scores.index(max(scores))
    model = LeNet5(**kept["model"], nn=torch.nn)
    model.load_state_dict(kept["state_dict"])
    images, labels = (digits := data.load("digits", Path())).test.images, digits.test.labels
    mean, std = (torch.tensor(kept[name]).view(-1, 1, 1) for name in ("mean", "std"))
    hits = model((images - mean) / std).argmax(1) == labels
    assert hits.float().mean().item() == pytest.approx(test["accuracy"])


def test_best_weights_are_kept_when_later_ones_are_worse(start, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.9, 0.9, 0.7, 0.6])
    losses = iter([1.0, 0.4, 0.3, 0.35, 0.1, 0.2])
    evaluated = []

    def evaluate(model, batches, _):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(losses), torch.cat([labels for _, labels in batches])

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "share_equal", lambda *_: next(accuracies))
    _, out, _, folder = start("--epochs", 5, "--limit-train", 32)
    kept = torch.load(folder / "best.pt", weights_only=True)
    assert kept["epoch"] == 3  # of the equal three, the lowest loss
    assert [event["best"] for event in events(folder, "epoch")] == [True, True, True, False, False]
    assert_close(evaluated[5], kept["state_dict"])  # and it is they that meet the test images
    assert not torch.equal(evaluated[4]["classifier.fc3.bias"], evaluated[5]["classifier.fc3.bias"])
    assert out.endswith("test accuracy: 60.00 %\n")


def test_learning_rate_rises_then_falls():
    factors = [train.rate_factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert train.rate_factor(0, 1) == 1


def test_divergence_is_one_clear_line(start):
    status, _, err, folder = start(*TINY, "--lr", 1e9)
    assert status == 2
    assert err == "train.py: error: the loss grew beyond all bounds in epoch 1: try an --lr below 1e+09\n"
    assert not (folder / "best.pt").exists()


# Arguments.


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
    for name in vars(train.parse_arguments([])):
        assert f"\n  --{name.replace('_', '-')} " in text


# The folder of a run.


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
    run = runs.Run(tmp_path / "run")
    run.save("best.pt", {"epoch": 1})
    before = tree(run.folder)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        run.save("best.pt", {"weights": torch.zeros(1000), "epoch": Unwritable()})
    assert tree(run.folder) == before
    run.save("best.pt", {"epoch": 2})
    assert run.load("best.pt", torch.device("cpu")) == {"epoch": 2}


def test_progress_bar_is_for_terminals(monkeypatch):
    screens = []
    for is_terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr(sys, "stderr", screen)
        assert list(runs.progress(range(3), 3, "epoch 1/2")) == [0, 1, 2]
        screens.append(screen.getvalue())
    assert "epoch 1/2" in screens[0]
    assert screens[1] == ""


# Data sets that are there, and data sets that are not.


@pytest.mark.parametrize("name", MNISTS)
def test_uncompressed_idx_files_are_used_as_they_are(name, tmp_path, start, no_network):
    write_mnist(tmp_path / "data", name)
    before = tree(tmp_path / "data")
    status, out, err, folder = start(*TINY, "--dataset", name, "--data-dir", tmp_path / "data")
    assert (status, err) == (0, "")
    assert out.startswith(f"{name}: 64 training, 20 validation and 50 test images of 1x28x28, 10 classes\n")
    assert tree(tmp_path / "data") == before
    assert torch.load(folder / "best.pt", weights_only=True)["model"] == {
        "in_channels": 1, "image_size": 28, "num_classes": 10,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_files_are_used_as_they_are(name, classes, tmp_path, start, cifar, no_network):
    folder = tmp_path / "data" / cifar(name).base_folder
    folder.mkdir(parents=True)
    for file, content in cifar_files(name):
        (folder / file).write_bytes(content)
    before = tree(tmp_path / "data")
    status, out, err, results = start(*TINY, "--dataset", name, "--data-dir", tmp_path / "data")
    assert (status, err) == (0, "")
    assert out.startswith(f"{name}: 64 training, 10 validation and 20 test images of 3x32x32, {classes} classes\n")
    assert tree(tmp_path / "data") == before
    assert len(list(results.glob("*.png"))) == 3


def test_layout_is_channels_first(tmp_path, cifar):
    folder = tmp_path / cifar("cifar10").base_folder
    folder.mkdir()
    for file, content in cifar_files("cifar10"):
        (folder / file).write_bytes(content)
    test = data.load("cifar10", tmp_path).test
    stored = pickle.loads((folder / "test_batch").read_bytes())  # "data": the red, green and blue plane of each image
    assert_close(test.images, torch.from_numpy(stored["data"]).view(-1, 3, 32, 32))
    assert test.labels.tolist() == stored["labels"]


@pytest.mark.parametrize("name", [*MNISTS, *CIFARS])
def test_failed_download_leaves_nothing(name, tmp_path, start, no_network):
    status, out, err, _ = start("--dataset", name, "--data-dir", tmp_path / "new" / "data")
    assert status == 2
    assert "epoch" not in out
    assert err.startswith(f"train.py: error: {name} is not in {tmp_path}/new/data/")
    assert "(Error downloading train-images-idx3-ubyte.gz: Tried " in err or "(no network in this test)" in err
    assert err.endswith("): put its files there, or leave out --dataset: the default, digits, needs no download\n")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_failed_download_as_a_user_sees_it(tmp_path):
    """In a process of its own, with a network on which nobody answers."""
    nobody = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    result = subprocess.run(
        [sys.executable, ROOT / "train.py", "--dataset", "cifar100", "--data-dir", "data"],
        cwd=tmp_path, env={**os.environ, **nobody, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("train.py: error: cifar100 is not in data/cifar-100-python and could not be down")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_download_that_breaks_off_keeps_what_was_there(tmp_path, start, server, monkeypatch):
    serve_mnist(monkeypatch, server, without=["t10k-labels-idx1-ubyte.gz"])
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"mine")
    before = tree(tmp_path / "data")
    status, _, err, results = start("--dataset", "mnist", "--data-dir", tmp_path / "data")
    assert status == 2
    assert "Error downloading t10k-labels-idx1-ubyte.gz" in err
    assert "/t10k-images-idx3-ubyte.gz" in server[2]  # it did get some way
    assert tree(tmp_path / "data") == before
    assert not results.exists()


def test_download(tmp_path, start, server, monkeypatch):
    """Only the missing file is added; then nobody is asked again."""
    serve_mnist(monkeypatch, server)
    raw = write_mnist(tmp_path / "data")
    content = (raw / "t10k-images-idx3-ubyte").read_bytes()
    (raw / "t10k-images-idx3-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(torch.full((200,), 3, dtype=torch.uint8)))  # unlike the server's
    settings = [*TINY, "--dataset", "mnist", "--data-dir", tmp_path / "data"]
    status, out, err, _ = start(*settings)
    assert (status, err) == (0, "")
    assert out.startswith(f"mnist is not in {raw}: downloading\nmnist: 64 training, ")
    assert sorted(path.name for path in raw.iterdir()) == sorted(file for file, _ in mnist_files())
    assert (raw / "t10k-images-idx3-ubyte").read_bytes() == content
    assert set(data.load("mnist", tmp_path / "data").train.labels.tolist()) == {3}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]
    asked = len(server[2])
    assert start(*settings, name="again")[0] == 0
    assert len(server[2]) == asked > 0


@pytest.mark.parametrize("name", CIFARS)
def test_download_of_one_archive(name, tmp_path, server, cifar, monkeypatch):
    source = cifar(name)
    folder, address, asked = server
    with tarfile.open(folder / source.filename, "w:gz") as archive:
        for file, content in cifar_files(name):
            member = tarfile.TarInfo(f"{source.base_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = (folder / source.filename).read_bytes()
    monkeypatch.setattr(source, "url", address + source.filename)
    monkeypatch.setattr(source, "tgz_md5", md5(content))

    loaded = data.load(name, tmp_path / "downloaded")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (90, 10, 20)

    # An archive that lies there already is unpacked instead of downloaded.
    asked.clear()
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / source.filename).write_bytes(content)
    assert_close(data.load(name, tmp_path / "unpacked").test.images, loaded.test.images)
    assert asked == []


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_damaged_file(part, tmp_path, start, no_network):
    raw = write_mnist(tmp_path / "data")
    damaged = raw / f"{part}-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    before = tree(tmp_path / "data")
    status, out, err, results = start("--dataset", "mnist", "--data-dir", tmp_path / "data")
    assert (status, out) == (2, "")
    assert err.startswith(f"train.py: error: the files of mnist in {raw} cannot be read (")
    assert err.count("\n") == 1
    assert tree(tmp_path / "data") == before
    assert not results.exists()


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("train-labels-idx1-ubyte", torch.zeros(7), "mnist has 200 images but 7 labels"),
        ("t10k-labels-idx1-ubyte", torch.full((50,), 10), "mnist has the label 10; expected 0 to 9"),
        ("train-images-idx3-ubyte", torch.zeros(200, 20, 28), "mnist has images of 20 by 28 pixels; expected 28 or 32"),
    ],
)
def test_files_that_do_not_fit(file, values, message, tmp_path):
    raw = write_mnist(tmp_path)
    (raw / file).write_bytes(idx(values.to(torch.uint8)))
    with pytest.raises(UserError, match=message):
        data.load("mnist", tmp_path)


def test_too_few_images(tmp_path):
    write_mnist(tmp_path, train_images=1)
    with pytest.raises(UserError, match="mnist has 1 training images: too few"):
        data.load("mnist", tmp_path)


# Batches.


@pytest.fixture
def numbered():
    """25 images; every pixel of image n is n + 1."""
    labels = torch.arange(25)
    images = (labels + 1).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 2, 28, 28)
    split = data.Split(images, labels)
    return data.Dataset("numbered", tuple(map(str, range(25))), split, split, split, (0.0, 1.0), (1.0, 2.0))


def labels_of(batches):
    return [label for _, labels in batches for label in labels.tolist()]


def test_parts_are_disjoint_and_do_not_move(tmp_path):
    write_mnist(tmp_path)
    loaded, again = (data.load("mnist", tmp_path) for _ in range(2))
    parts = [
        {bytes(image.flatten().tolist()) for image in part.images}
        for part in (loaded.train, loaded.validation, loaded.test)
    ]
    assert [len(part) for part in parts] == [180, 20, 50]
    assert len(set.union(*parts)) == 250
    assert_close(loaded.validation.images, again.validation.images)
    limited = data.load("mnist", tmp_path, limit_train=30)
    assert_close(limited.train.images, loaded.train.images[:30])
    assert_close(limited.validation.images, loaded.validation.images)


def test_digits_in_three_parts():
    digits = data.load("digits", Path())
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1294, 144, 359]
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.min() == 0
    assert digits.train.images.max() == 255
    assert digits.train.labels.unique().tolist() == digits.test.labels.unique().tolist() == list(range(10))


def test_every_image_once_per_epoch(numbered):
    batches = data.Batches(numbered.train, numbered, batch_size=8, device=torch.device("cpu"))
    assert len(batches) == 4
    assert labels_of(batches.in_order()) == list(range(25))
    orders = [labels_of(batches.shuffled(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    torch.manual_seed(7)
    assert labels_of(batches.shuffled(1, 2)) == orders[-1]
    assert [len(labels) for _, labels in batches.shuffled(0, 1)] == [8, 8, 8, 1]


def test_images_stay_with_their_labels_and_are_normalised(numbered):
    batches = data.Batches(numbered.train, numbered, batch_size=8, device=torch.device("cpu"))
    for source in (batches.in_order(), batches.shuffled(0, 1)):
        for images, labels in source:
            assert_close(images[:, 0], (labels + 1.0).view(-1, 1, 1).expand(-1, 28, 28))
            assert_close(images[:, 1], (labels / 2.0).view(-1, 1, 1).expand(-1, 28, 28))


def test_training_images_have_mean_0_and_deviation_1():
    digits = data.load("digits", Path())
    images = torch.cat(
        [images for images, _ in data.Batches(digits.train, digits, 100, torch.device("cpu")).in_order()]
    )
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)


def test_moved_images():
    images = torch.randint(1, 256, (25, 3, 6, 5), dtype=torch.uint8)
    move = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    expected = torch.zeros(25, 3, 6, 5, dtype=torch.uint8)
    for n, (down, right) in enumerate(2 - move):  # pixel (i, j) goes to (i + down, j + right), if that is inside
        for i in range(max(0, -down), min(6, 6 - down)):
            for j in range(max(0, -right), min(5, 5 - right)):
                expected[n, :, i + down, j + right] = images[n, :, i, j]
    assert_close(data._moved(images, move, shift=2), expected)


def test_shift_moves_images_by_every_amount(numbered):
    batches = data.Batches(numbered.train, numbered, batch_size=25, device=torch.device("cpu"))
    seen = set()
    for epoch in range(20):
        [(images, _)] = batches.shuffled(0, epoch, shift=1)
        rows, columns = ((images[:, 0] != 0).any(axis).int() for axis in (2, 1))
        seen |= {tuple(n.tolist()) for n in torch.stack([rows[:, 0], rows[:, -1], columns[:, 0], columns[:, -1]], 1)}
    assert len(seen) == 9


# Pictures.


def test_confusion_matrix_counts():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 1, 1, 1, 0])
    axes = pictures.confusion_matrix(predictions, labels, ["ant", "bee", "cat"]).axes[0]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (2, 0): "1"}  # (true, predicted)
    assert_close(torch.tensor(axes.images[0].get_array()) ** 2, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat"]
    assert axes.get_title() == "Test images: 2 of 6 wrong"


def test_learning_curves_show_what_was_logged():
    steps = [{"step": n, "loss": 1 / n} for n in range(1, 7)]
    epochs = [
        {"epoch": 1, "loss": 0.6, "validation_loss": 0.5, "validation_accuracy": 0.8, "best": True},
        {"epoch": 2, "loss": 0.2, "validation_loss": 0.4, "validation_accuracy": 0.7, "best": False},
    ]
    loss, accuracy = pictures.learning_curves(steps, epochs).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1 / n for n in range(1, 7)], [0.6, 0.2], [0.5, 0.4]]
    assert loss.lines[0].get_xdata()[-1] == 2
    assert list(accuracy.lines[0].get_ydata()) == [80, 70]
    assert list(accuracy.lines[1].get_xdata()) == [1]  # the weights that were kept


@pytest.mark.parametrize("channels", [1, 3])
def test_filters(channels):
    weight = torch.randn(8, channels, 5, 5)
    figure = pictures.first_layer_filters(weight)
    drawn = torch.stack([torch.tensor(axes.images[0].get_array()) for axes in figure.axes if axes.images])[:8]
    if channels == 1:
        assert_close(drawn, weight[:, 0])
    else:
        assert_close(drawn, (weight / weight.abs().max() / 2 + 0.5).movedim(1, -1))
