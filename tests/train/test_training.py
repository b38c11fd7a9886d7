"""The training itself: what it learns, what it writes, and what it is independent of."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from files import TINY
from lives import events, losses
from matplotlib.image import imread
from torch.testing import assert_close

import train
from torchconv.models import LeNet5
from torchconv.training import data


@pytest.mark.parametrize("seed", range(5))
def test_torch_and_torchconv_take_the_same_steps(start, seed):
    """At a quarter more than the default rate: with less the loss hardly falls in 50 steps, and wrong gradients might
    pass; with more a ReLU whose input is zero up to rounding sends the two apart (at 0.03, one seed of five)."""
    settings = ["--epochs", 2, "--limit-train", 800, "--lr", 0.025, "--seed", seed]
    ours, theirs = (torch.tensor(losses(start(*settings, "--nn", nn, name=nn)[3])) for nn in ("torchconv", "torch"))
    assert len(ours) == 50
    assert ours[-10:].mean() < 0.99 * ours[:10].mean()
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
    status, out, err, folder = start("--epochs", 3, "--limit-train", 300, "--lr", 0.05, pictures=True)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pt", "checkpoint.pt", "confusion_matrix.png", "feature_maps.png", "filters.png", "learning_curves.png",
        "metrics.jsonl", "misclassified.png", "run.json",
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
    assert kept["model"].pop("name") == "lenet5"
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

    def evaluate(model, batches, *_):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(losses), batches.labels

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
    assert err == "train.py: error: the loss grew beyond all bounds in epoch 1: try a lower --lr\n"
    assert not (folder / "best.pt").exists()
