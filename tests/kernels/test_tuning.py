"""Choosing tiles by measuring, with a fake clock: what is kept, for whom, and what becomes of a broken file."""

import json
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
import triton
from launches import BLOCK, CONV, DEVICE, Conv, checking, tiles_of
from support import assert_close

import triton_kernels
from triton_kernels import configs, tuning
from triton_kernels.configs import Tile

TILES = (Tile(64, 16, 32, 4, 3), Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3))
DEFAULT = TILES[0]


class Clock:
    """Runs a launch, counts it, and says that it took as long as its tile is far from `fastest`."""

    def __init__(self, fastest=TILES[1]):
        self.fastest, self.timed = fastest, []

    def __call__(self, launch):
        tile = launch()
        self.timed.append(tile)
        return abs(tile.n - self.fastest.n)


def choose(tuner, layer="layer", tiles=TILES):
    return tuner.choose(layer, tiles, DEFAULT, lambda tile: tile)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "torchconv" / "tiles.json"


def test_the_fastest_is_kept(path):
    clock = Clock()
    tuner = tuning.Tuner("measure", path, clock)
    assert [choose(tuner), choose(tuner)] == [TILES[1]] * 2
    assert set(clock.timed) == set(TILES)  # once, by the first of the two
    assert json.loads(path.read_text()) == {"layer": list(TILES[1])}
    later = Clock(fastest=TILES[2])
    for mode in ("cached", "measure"):
        assert choose(tuning.Tuner(mode, path, later)) == TILES[1]
    assert later.timed == []
    assert list(path.parent.iterdir()) == [path]  # no temporary files


@pytest.mark.parametrize("mode", ["heuristic", "cached"])
def test_without_measuring_the_heuristic_chooses(path, mode):
    clock = Clock()
    assert choose(tuning.Tuner(mode, path, clock)) == DEFAULT
    assert clock.timed == []
    assert not path.parent.exists()


BROKEN = {
    "empty": b"",
    "half a file": b'{"layer": [64, 32, ',
    "another's": b'{"layer": {"BLOCK": 3}}',
    "a list": b"[1, 2]",
    "binary": b"\xff\x00\x80",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_measured_anew(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"cannot use the tuning results in .*tiles\.json"):
        assert choose(tuning.Tuner("cached", path, Clock())) == DEFAULT
    with pytest.warns(UserWarning, match="cannot use the tuning results") as warned:
        assert choose(tuning.Tuner("measure", path, Clock())) == TILES[1]
    assert len(warned) == 1
    assert json.loads(path.read_text()) == {"layer": list(TILES[1])}


@pytest.mark.parametrize("tile", [[16, 16, 16, 4, 1], ["a"], []])
def test_a_tile_that_is_offered_no_longer_is_measured_anew(path, tile):
    path.parent.mkdir()
    path.write_text(json.dumps({"layer": tile, "other": [1, 2, 3, 4, 5]}))
    assert choose(tuning.Tuner("cached", path, Clock())) == DEFAULT
    assert choose(tuning.Tuner("measure", path, Clock())) == TILES[1]
    assert json.loads(path.read_text()) == {"layer": list(TILES[1]), "other": [1, 2, 3, 4, 5]}


def test_a_directory_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "torchconv").write_text("a file where the directory should be")
    tuner = tuning.Tuner("measure", tmp_path / "torchconv" / "tiles.json", Clock())
    with pytest.warns(UserWarning, match="tuning results cannot be kept"):
        assert choose(tuner) == TILES[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(tuner) == TILES[1]


def test_writers_at_the_same_time_leave_a_whole_file(path):
    """Results of others are kept, and at every moment a reader finds a file that can be read."""
    choose(tuning.Tuner("measure", path, Clock()), "first")

    def write(name):
        tuner = tuning.Tuner("measure", path, Clock())
        for i in range(20):
            choose(tuner, f"{name}{i}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert "first" in json.loads(path.read_text())
    results = json.loads(path.read_text())
    assert "first" in results
    assert set(map(tuple, results.values())) == {TILES[1]}


def test_a_tile_that_does_not_fit_is_not_chosen(path):
    def launch(tile):
        if tile == TILES[1]:
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return tile

    assert tuning.Tuner("measure", path, Clock()).choose("layer", TILES, DEFAULT, launch) == DEFAULT


def test_the_variable_is_checked():
    code = "import triton_kernels.tuning; print(triton_kernels.tuning.tuner.mode)"

    def run(**variables):
        return subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True
        )

    assert run(TORCHCONV_TUNE="cached").stdout == "cached\n"
    failed = run(TORCHCONV_TUNE="fast")
    words = "ValueError: TORCHCONV_TUNE must be one of ('heuristic', 'cached', 'measure'), but got 'fast'"
    assert words in failed.stderr


class Recorder(tuning.Tuner):
    """Remembers the layers that it is asked about, and what they can be launched with; chooses the last."""

    def __init__(self):
        self.mode, self.layers, self.offered = "measure", [], []

    def choose(self, layer, tiles, default, launch):
        self.layers.append(layer)
        self.offered.append(tiles)
        return tiles[-1]


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(tuning, "tuner", recorder)
    monkeypatch.setattr(tuning, "_gpu", lambda x: "Some GPU")
    return recorder


def launch(name, conv, dtype):
    x, w, g = conv.operands(dtype)
    if name in CONV:
        return conv.launch(name, x, w, g, None, torch.channels_last)
    geometry = conv.block((2, 2))
    g = torch.randn(conv.batch, conv.outputs, *geometry.pooled, device=DEVICE).to(dtype)
    winner = torch.zeros_like(g, dtype=torch.uint8)
    if name == "block_fprop":
        return triton_kernels.block_fprop(x, w, None, geometry, torch.channels_last)
    if name == "block_dgrad":
        return triton_kernels.block_dgrad(g, winner, w, geometry, torch.channels_last)
    return triton_kernels.block_wgrad(x, g, winner, True, geometry, torch.channels_last)


@pytest.mark.parametrize("name", [*CONV, *BLOCK])
def test_a_layer_is_known_by_all_but_its_batch(name, recorder):
    conv = Conv(2, 3, 4, (4, 6), (3, 3), padding=1)
    others = [conv._replace(batch=3), conv._replace(outputs=6), conv._replace(channels=2), conv._replace(size=(4, 4))]
    for same in (conv, *others):
        launch(name, same, torch.float32)
    launch(name, conv, torch.float16)
    assert recorder.layers[0] == recorder.layers[1]
    assert len(set(recorder.layers)) == len(recorder.layers) - 1
    assert all(layer.startswith(f"Some GPU | {triton.__version__} | ") for layer in recorder.layers)
    # What can be chosen is what the other tests run.
    assert [set(offered) for offered in recorder.offered] == [set(tiles_of(name, torch.float32))] * 5 + [
        set(tiles_of(name, torch.float16))
    ]


@pytest.mark.parametrize("name", CONV)
def test_the_chosen_tile_runs(name, recorder):
    conv = Conv(2, 5, 6, (7, 6), (3, 2), padding=1)
    x, w, g = conv.operands(torch.float32)
    with checking():
        results = conv.launch(name, x, w, g, None, torch.channels_last)
    assert len(recorder.layers) == 1
    for result, exact in zip(results, conv.exact(name, x, w, g, None)):
        assert_close(result, exact, conv.terms(name), name)


def test_a_forced_tile_is_not_tuned(recorder):
    conv = Conv(2, 3, 4, (4, 6), (3, 3), padding=1)
    with configs.forced(tiles_of("conv_fprop", torch.float32)[0]):
        launch("conv_fprop", conv, torch.float32)
    assert recorder.layers == []


def test_how_wgrad_splits_its_sum_does_not_depend_on_the_tile(monkeypatch):
    conv = Conv(3, 3, 4, (20, 19), (3, 3), padding=1)
    module = sys.modules["triton_kernels.conv_wgrad"]
    seen = []
    split = configs.split
    monkeypatch.setattr(module.configs, "split", lambda *a: seen.append(split(*a)) or seen[-1])
    for tile in tiles_of("conv_wgrad", torch.float32):
        with configs.forced(tile):
            launch("conv_wgrad", conv, torch.float32)
    assert len(seen) > 1
    assert len(set(seen)) == 1
