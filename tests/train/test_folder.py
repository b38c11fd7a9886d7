"""A folder of one's own images."""

import threading

import pytest
import torch
from files import write_images
from PIL import Image

from torchconv.training import UserError, data
from torchconv.training.folder import read_image


def test_folder_as_a_data_set(tmp_path):
    write_images(tmp_path)
    loaded = data.load("folder", tmp_path, image_size=24, workers=3)
    assert loaded.classes == ("ant", "bee", "cat")
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [54, 6, 12]
    assert loaded.train.images.shape[1:] == (3, 24, 24)
    for part in (loaded.train, loaded.validation, loaded.test):
        assert torch.equal(part.images.float().mean((2, 3)).argmax(1), part.labels)  # the class decides the colour
    again = data.load("folder", tmp_path, image_size=24, workers=1)
    assert torch.equal(again.train.images, loaded.train.images)


def test_workers_decode(tmp_path, monkeypatch):
    write_images(tmp_path)
    seen = set()

    def note(path, **arguments):
        seen.add(threading.current_thread().name)
        barrier.wait(5)
        return read_image(path, **arguments)

    barrier = threading.Barrier(4)  # passes only if four are at it together
    monkeypatch.setattr("torchconv.training.folder.read_image", note)
    data.load("folder", tmp_path, workers=4)
    assert len(seen) >= 4


def test_middle_square_is_read(tmp_path):
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png", channels=3, image_size=10)
    assert pixels.shape == (3, 10, 10)
    assert (pixels[2] > 200).all()
    assert read_image(tmp_path / "wide.png", channels=1, image_size=10).shape == (1, 10, 10)


def no_test(folder):
    (folder / "test").rename(folder / "elsewhere")
    return r"test cannot be used \(.*\): expected DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE"


def other_classes(folder):
    (folder / "test" / "bee").rename(folder / "test" / "wasp")
    return r"has different classes in train and test \(bee, wasp\): expected"


def empty_class(folder):
    (folder / "train" / "dog").mkdir()
    return r"train cannot be used \(.*dog.*\): expected"


def truncated_image(folder):
    path = next((folder / "train" / "ant").iterdir())
    path.write_bytes(path.read_bytes()[:60])
    return rf"{path} cannot be read as an image \("


def text_for_image(folder):
    path = folder / "test" / "cat" / "000.png"
    path.write_text("a cat")
    return rf"{path} cannot be read as an image \("


@pytest.mark.parametrize("damage", [no_test, other_classes, empty_class, truncated_image, text_for_image])
def test_folder_that_cannot_be_used(damage, tmp_path):
    write_images(tmp_path)
    message = damage(tmp_path)
    with pytest.raises(UserError, match=message):
        data.load("folder", tmp_path)
