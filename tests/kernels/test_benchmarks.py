"""The commands `benchmarks.memory`, `benchmarks.launches` and `benchmarks.gpu`: what they count, print and write."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchconv
from benchmarks import gpu, memory, tables
from benchmarks.layers import LAYERS, Layer
from benchmarks.models import MODELS
from benchmarks.trace import Watcher, watch
from triton_kernels import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled in this process")

ROOT = Path(__file__).parents[2]


# Tables --------------------------------------------------------------------------------------------------------------


def test_markdown():
    assert tables.markdown(("name", "ms"), [("a", 1.234), ("bc", None)]) == (
        "| name |   ms |\n| ---- | ---: |\n| a    | 1.23 |\n| bc   |    - |"
    )


def test_a_file_is_never_half_written(tmp_path):
    file = tmp_path / "figures.json"
    tables.save(file, [1])
    with pytest.raises(TypeError):
        tables.save(file, [object()])
    assert json.loads(file.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [file]


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The rows that the command writes, by model and path."""
    file = tmp_path_factory.mktemp("memory") / "memory.json"
    memory.main(["--batch", "2", "--json", str(file)])
    return {(row["model"], row["path"]): row for row in json.loads(file.read_text())}


def test_memory_of_every_model_on_both_paths(kept):
    assert set(kept) == {(model.name, path) for model in MODELS for path in ("tensor algebra", "Triton")}


@pytest.mark.parametrize("path", ["tensor algebra", "Triton"])
def test_memory_of_lenet(kept, path):
    """Bytes per sample, by hand: float32 maps, a winner per window, and the classifier's inputs."""
    map1, map2, pooled1, pooled2, hidden = 6 * 28 * 28, 16 * 10 * 10, 6 * 14 * 14, 16 * 5 * 5, 120 + 84
    plain = 4 * (map1 + pooled1 + map2 + pooled2 + hidden)  # ReLU keeps what pooling takes
    assert kept["LeNet-5", path]["torchs"] == plain + 8 * (pooled1 + pooled2)
    assert kept["LeNet-5", path]["ours"] == plain + pooled1 + pooled2
    assert kept["LeNet-5, fused", path]["ours"] == 4 * (pooled1 + pooled2 + hidden) + pooled1 + pooled2


def test_memory_aims(kept):
    for (model, path), row in kept.items():
        assert row["ratio"] <= (0.25 if model == "LeNet-5, fused" else 1), (model, path)
        assert row["ratio"] <= row["aim"]


def test_what_is_there_anyway_is_not_counted():
    """A convolution keeps its input and its weight; views of one storage are one."""
    x = torch.randn(2, 3, 8, 8)
    assert memory.kept(torchconv.nn.Conv2d(3, 4, 3), x) == 0
    two = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(192, 2))
    assert memory.kept(two, x.requires_grad_()) == x.nbytes


# Launches ------------------------------------------------------------------------------------------------------------


def test_launches(tmp_path):
    """In a process of its own, which compiles: seven kernels for LeNet-5's convolutions and poolings, of at most 12."""
    file = tmp_path / "launches.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launches", "--only", "LeNet-5, fused", "--repeat", "2"]
    subprocess.run([*command, "--json", str(file)], cwd=ROOT, env=environment, check=True, capture_output=True)
    (row,) = json.loads(file.read_text())
    # Two blocks; backward no input gradient of the first, and wgrad in two passes.
    assert row["kernels"] == {
        "block_fprop_kernel": 2, "conv_dgrad_kernel": 1, "conv_wgrad_kernel": 2, "add_splits_kernel": 2
    }  # fmt: skip
    assert sum(row["kernels"].values()) <= row["aim"] == 12
    assert row["torchs"]["convolution"] == row["torchs"]["convolution_backward"] == 2
    assert sum(row["kernels"].values()) + sum(row["others"].values()) < sum(row["torchs"].values())
    assert not any("conv" in name or "pool" in name for name in row["others"])
    assert 0 < row["launching"] < row["microseconds"]


# GPU -----------------------------------------------------------------------------------------------------------------


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "no GPU" in err


@pytest.fixture
def kernels():
    """CPU tensors take the launchers; no program of a kernel runs."""
    with torchconv.backend("triton"), watch(Watcher(), programs=lambda grid: ()):
        yield


def test_gpu_command(tmp_path, capsys, kernels, monkeypatch):
    """From end to end on CPU tensors, with a timer that says torch's takes 2 ms and ours 1, then 4."""
    monkeypatch.setattr(gpu, "LAYERS", [layer._replace(size=(2, *layer.size[1:])) for layer in LAYERS])
    monkeypatch.setattr(gpu, "BLOCKS", [layer._replace(size=(2, *layer.size[1:])) for layer in gpu.BLOCKS])
    times = {"ours": 1.0}
    turn = []

    def timer(run):
        run()
        turn.append(None)
        return times["ours"] if len(turn) > 4 and len(turn) % 2 else 2.0  # two for each ceiling first

    file = tmp_path / "gpu.json"
    arguments = ["--only", "lenet", "--precisions", "fp32", "tf32", "--json", str(file)]
    gpu.main(arguments, torch.device("cpu"), timer, copied=1 << 12, rows=16)
    written = json.loads(file.read_text())
    assert set(written["versions"]) == {"device", "driver", "toolkit", "torch", "triton"}
    assert [(c["precision"], c["bandwidth"], c["compute"]) for c in written["ceilings"]] == [
        (precision, 2 * 2**12 / 2e6, 2 * 16**3 / 2e9) for precision in ("fp32", "tf32")
    ]
    assert len(written["rows"]) == 6 * 2 * 2 * 2  # layers, precisions, formats, passes
    assert {(row["ours"], row["torchs"], row["ratio"]) for row in written["rows"]} == {(1, 2, 2)}
    pool = next(row for row in written["rows"] if row["layer"].startswith("lenet pool2"))
    assert pool["bandwidth"] == 4 * 2 * 16 * (100 + 25) / 1e6
    assert (pool["compute"], pool["of_matmul"]) == (0, 0)
    assert "Ours is slower in 0 of 48 rows." in capsys.readouterr().out

    times["ours"] = 4.0
    turn.clear()
    gpu.main(["--only", "lenet conv2", "--precisions", "fp16", "bf16"], torch.device("cpu"), timer, 1 << 12, 16)
    out = capsys.readouterr().out
    assert "Ours is slower in 8 of 8 rows." in out
    assert out.count(" < ") == 8


def test_what_a_layer_needs():
    """Forward x, w, b and y; backward x, y's gradient and the parameters', and for the input's also w and itself."""
    layer = Layer("", lambda nn: nn.Conv2d(3, 4, 3, 2, 1), (2, 3, 9, 9), False)
    x, y = torch.empty(layer.size), torch.empty(2, 4, 5, 5)
    flops = 2 * 200 * 27
    for input_gradient in (False, True):
        case = gpu.Case("", *(layer.build(torch.nn) for _ in range(2)), layer.size, input_gradient)
        needs = gpu.work(case, x, y)
        assert needs["forward"] == (4 * (486 + 108 + 4 + 200), flops)
        backward = 4 * (486 + 200 + 108 + 4 + (108 + 486) * input_gradient)
        assert needs["backward"] == (backward, flops * (1 + input_gradient))


def test_tf32_is_put_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with contextlib.suppress(ZeroDivisionError), gpu.tf32(not before[0]):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is not before[0]
        raise ZeroDivisionError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
