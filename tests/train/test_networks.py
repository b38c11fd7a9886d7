"""Networks by name, and the ways to compute them."""

import os

import pytest
import torch
from files import TINY, write_images, write_mnist
from lives import events, losses
from torch.testing import assert_close

import torchconv
import train
from torchconv.training import UserError
from torchconv.training.network import build, first_convolution

MODELS = {"lenet5": (1, 28), "resnet18": (3, 32), "mobilenet_v3_small": (3, 32)}


def loss_of(settings, start, name="run"):
    status, _, err, folder = start(*TINY, *settings, name=name)
    assert status == 0, err
    return torch.tensor(losses(folder))


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_whose_they_should_be(name):
    subjects = (torch.nn.modules.conv._ConvNd, torch.nn.modules.pooling._MaxPoolNd, torch.nn.AdaptiveAvgPool2d)
    for layers in ("torchconv", "torch"):
        network = build(name, *MODELS[name], 7, layers)
        ours = [type(layer).__module__ for layer in network.modules() if isinstance(layer, subjects)]
        assert len(ours) >= 4
        assert all(module.startswith(f"{layers}.nn") for module in ours)


def test_converted_network_computes_the_same():
    results = []
    for layers in ("torchconv", "torch"):
        torch.manual_seed(0)
        network = build("resnet18", 3, 32, 7, layers)
        logits = network(torch.randn(4, 3, 32, 32))
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        results.append((logits, first_convolution(network).weight.grad))
    assert_close(*(logits for logits, _ in results), rtol=1e-3, atol=1e-4)
    assert_close(*(grad for _, grad in results), rtol=1e-2, atol=1e-3)


def test_grey_images_for_a_network_of_colour():
    network = build("resnet18", 1, 28, 10)
    assert first_convolution(network).weight.shape == (64, 1, 7, 7)
    assert isinstance(first_convolution(network), torchconv.nn.Conv2d)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "--model resnet is not known: expected lenet5, or a classifier of torchvision such as resnet18"),
        ("fcn_resnet50", "--model fcn_resnet50 is not known"),
        ("alexnet", "--model alexnet cannot be used for images of 3x32x32 ("),
        ("vit_b_16", "--model vit_b_16 cannot be used for images of 3x32x32 (Wrong image height!"),
    ],
)
def test_model_that_cannot_be_used(name, message):
    with pytest.raises(UserError) as error:
        build(name, 3, 32, 10)
    assert str(error.value).startswith(message)


def test_resnet_trains_on_a_folder(tmp_path, start):
    write_images(tmp_path / "images")
    settings = ["--model", "resnet18", "--dataset", "folder", "--data-dir", tmp_path / "images", "--lr", 0.01]
    status, out, err, folder = start(*settings, "--epochs", 2, "--batch-size", 18)
    assert (status, err) == (0, "")
    assert "\nresnet18 on torchconv.nn, 11,178,051 parameters, cpu\n" in out
    assert losses(folder)[-1] < 0.5 * losses(folder)[0]


def test_channels_last(start, monkeypatch):
    seen = []
    original = torchconv.nn.Conv2d.forward

    def forward(self, images):
        seen.append((images.is_contiguous(memory_format=torch.channels_last), self.weight.shape[1]))
        return original(self, images)

    monkeypatch.setattr(torchconv.nn.Conv2d, "forward", forward)
    last = loss_of(["--channels-last"], start, "last")
    assert all(is_last for is_last, _ in seen)
    assert_close(last, loss_of([], start, "first"), rtol=1e-5, atol=0)
    assert not all(is_last for is_last, channels in seen if channels > 1)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision(name, dtype, start, monkeypatch):
    seen = set()
    original = torchconv.nn.Conv2d.forward

    def forward(self, images):
        output = original(self, images)
        seen.add((output.dtype, self.weight.dtype))
        return output

    monkeypatch.setattr(torchconv.nn.Conv2d, "forward", forward)
    mixed = loss_of(["--amp", name], start, name)
    assert seen == {(dtype, torch.float32)}
    monkeypatch.undo()
    assert_close(mixed, loss_of([], start, "full"), rtol=0.02, atol=0)


def test_float16_gradients_are_scaled(start):
    *_, folder = start(*TINY, "--amp", "fp16")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["scaler"]["scale"] > 1
    assert saved["scheduler"]["last_epoch"] == 2
    *_, folder = start(*TINY, name="full")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["scaler"] == {}


def test_compile(start, monkeypatch):
    """With a backend that needs no compiler; that it is asked for, and that nothing breaks the graph."""
    compiled = []
    compile = torch.compile

    def with_eager_backend(model):
        compiled.append(type(model).__name__)
        return compile(model, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", with_eager_backend)
    graph = loss_of(["--compile"], start, "compiled")
    assert compiled == ["LeNet5"]
    assert_close(graph, loss_of([], start, "eager"), rtol=1e-4, atol=0)
    assert len(compiled) == 1


def test_compiler_that_is_not_there(start, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def fail(*_):
        raise BackendCompilerFailed(min, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(train, "prepare", lambda network, *_: type("M", (torch.nn.Module,), {"forward": fail})())
    status, _, err, _ = start(*TINY, "--compile")
    assert status == 2
    assert err.startswith("train.py: error: --compile cannot be used here (")
    assert err.count("\n") == 1


def test_deterministic(start):
    try:
        loss_of(["--deterministic"], start)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        loss_of([], start, "again")
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_optimizers(start, monkeypatch):
    made = []
    for name in ("SGD", "AdamW"):
        cls = getattr(torch.optim, name)
        init = cls.__init__
        monkeypatch.setattr(
            cls, "__init__", lambda self, *a, _i=init, _n=name, **k: (made.append((_n, k)), _i(self, *a, **k))[1]
        )
    sgd = loss_of(["--momentum", 0.5], start, "sgd")
    adamw = loss_of(["--optimizer", "adamw", "--weight-decay", 0.1], start, "adamw")
    assert made[0] == ("SGD", {"lr": 0.02, "momentum": 0.5, "weight_decay": 5e-4})
    assert made[1] == ("AdamW", {"lr": 0.001, "weight_decay": 0.1})
    assert sgd[0] == adamw[0]
    assert sgd[1] != adamw[1]


def test_tensorboard(start, tmp_path):
    """What TensorBoard reads is what the metrics say, also over an interruption."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    *_, folder = start("--tensorboard", "--epochs", 2, "--limit-train", 64)
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    read = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert set(read) >= {"step/loss", "epoch/loss", "epoch/validation_accuracy", "epoch/next_lr", "test/accuracy"}
    assert read["step/loss"] == [(e["step"], pytest.approx(e["loss"])) for e in events(folder, "step")]
    assert [step for step, _ in read["epoch/loss"]] == [2, 4]
    *_, folder = start(*TINY, name="without")
    assert not (folder / "tensorboard").exists()


def test_limit_train(start, tmp_path):
    write_mnist(tmp_path / "data")
    _, out, _, folder = start("--epochs", 1, "--limit-train", 40, "--dataset", "mnist", "--data-dir", tmp_path / "data")
    assert out.startswith("mnist: 40 training, 20 validation and 50 test images")
    assert len(losses(folder)) == 2


def test_fused_is_the_same_network():
    """The same weights, values and gradients; what has nothing to fuse says so."""
    torch.manual_seed(0)
    plain = build("lenet5", 1, 28, 10)
    torch.manual_seed(0)
    fused = build("lenet5", 1, 28, 10, fused=True)
    fused.load_state_dict(plain.state_dict())
    images = torch.randn(4, 1, 28, 28)
    for network in (plain, fused):
        network(images).square().sum().backward()
    torch.testing.assert_close(fused(images), plain(images))
    for a, b in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(UserError, match="nothing to fuse"):
        build("resnet18", 3, 32, 10, fused=True)
    with pytest.raises(UserError, match="fused"):
        build("lenet5", 1, 28, 10, "torch", fused=True)
