"""Batches: every image once, with its label, changed as asked."""

from pathlib import Path

import pytest
import torch
from files import write_mnist
from torch.testing import assert_close

from torchconv.training import data
from torchconv.training.batches import Batches, augmented, moved


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
    batches = Batches(numbered.train, numbered, batch_size=8, device=torch.device("cpu"))
    assert len(batches) == 4
    assert labels_of(batches.in_order()) == list(range(25))
    orders = [labels_of(batches.shuffled(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    torch.manual_seed(7)
    assert labels_of(batches.shuffled(1, 2)) == orders[-1]
    assert [len(labels) for _, labels in batches.shuffled(0, 1)] == [7, 6, 6, 6]  # and no last batch of one image


def test_images_stay_with_their_labels_and_are_normalised(numbered):
    batches = Batches(numbered.train, numbered, batch_size=8, device=torch.device("cpu"))
    for source in (batches.in_order(), batches.shuffled(0, 1)):
        for images, labels in source:
            assert_close(images[:, 0], (labels + 1.0).view(-1, 1, 1).expand(-1, 28, 28))
            assert_close(images[:, 1], (labels / 2.0).view(-1, 1, 1).expand(-1, 28, 28))


def test_training_images_have_mean_0_and_deviation_1():
    digits = data.load("digits", Path())
    images = torch.cat([images for images, _ in Batches(digits.train, digits, 100, torch.device("cpu")).in_order()])
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
    assert_close(moved(images, move, shift=2), expected)


def test_shift_moves_images_by_every_amount(numbered):
    batches = Batches(numbered.train, numbered, batch_size=25, device=torch.device("cpu"))
    seen = set()
    for epoch in range(20):
        [(images, _)] = batches.shuffled(0, epoch, shift=1)
        rows, columns = ((images[:, 0] != 0).any(axis).int() for axis in (2, 1))
        seen |= {tuple(n.tolist()) for n in torch.stack([rows[:, 0], rows[:, -1], columns[:, 0], columns[:, -1]], 1)}
    assert len(seen) == 9


def test_an_epoch_can_be_entered_half_way(numbered):
    batches = Batches(numbered.train, numbered, batch_size=4, device=torch.device("cpu"))
    whole = list(batches.shuffled(3, 5, shift=2, augment=("flip", "contrast", "erase")))
    for first in (0, 3, 6, 7):
        rest = list(batches.shuffled(3, 5, first, shift=2, augment=("flip", "contrast", "erase")))
        assert len(rest) == 7 - first
        for ours, theirs in zip(rest, whole[first:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_chunks_do_not_change_anything(numbered, monkeypatch):
    batches = Batches(numbered.train, numbered, batch_size=4, device=torch.device("cpu"))
    whole = list(batches.shuffled(3, 5, shift=2, augment=("contrast", "erase")))
    monkeypatch.setattr("torchconv.training.batches.CHUNK", 1)
    for ours, theirs in zip(batches.shuffled(3, 5, shift=2, augment=("contrast", "erase")), whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_augmentations():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    low, high = torch.full((1, 5), 0.0), torch.full((1, 5), 0.999)
    chances = torch.cat([low, high])
    assert augmented(images, chances, ()) is images
    flipped = augmented(images, chances, ("flip",))
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])
    contrast = augmented(images, chances, ("contrast",)).float()
    means = images.float().mean((1, 2, 3))
    assert contrast[0].mean() == pytest.approx(0.7 * means[0].item(), abs=1)
    assert contrast[0].std() == pytest.approx(0.7 * images[0].float().std().item(), rel=0.02)
    assert contrast[1].mean() > 1.1 * means[1]
    erased = augmented(images, torch.full((2, 5), 0.5), ("erase",))
    changed = (erased != images).any(0).any(0)
    assert (erased[:, :, 3:6, 3:6] == 128).all()
    assert not changed[:2].any()
    assert not changed[:, :2].any()
    assert erased.dtype == torch.uint8
