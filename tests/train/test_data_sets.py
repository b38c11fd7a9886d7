"""Data sets that are there, and data sets that are not."""

import gzip
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from functools import partial

import pytest
import torch
import torchvision
from files import CIFARS, MNISTS, ROOT, TINY, cifar_files, idx, md5, mnist_files, tree, write_mnist
from torch.testing import assert_close

from torchconv.training import UserError, data


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


@pytest.mark.parametrize("name", MNISTS)
def test_uncompressed_idx_files_are_used_as_they_are(name, tmp_path, start, no_network):
    write_mnist(tmp_path / "data", name)
    before = tree(tmp_path / "data")
    status, out, err, folder = start(*TINY, "--dataset", name, "--data-dir", tmp_path / "data")
    assert (status, err) == (0, "")
    assert out.startswith(f"{name}: 64 training, 20 validation and 50 test images of 1x28x28, 10 classes\n")
    assert tree(tmp_path / "data") == before
    assert torch.load(folder / "best.pt", weights_only=True)["model"] == {
        "name": "lenet5", "in_channels": 1, "image_size": 28, "num_classes": 10,
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
    assert len(torch.load(results / "best.pt", weights_only=True)["classes"]) == classes


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
