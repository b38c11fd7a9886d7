"""The commands `benchmarks.cpu` and `benchmarks.peak`: that they run, and write what they print."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import cpu, peak


def test_every_row_runs(capsys, tmp_path):
    """Each case of the table, once; the figures of one row are written."""
    for case in cpu.cases():
        case.ours()
    cpu.main(["--only", "pool2 2x2 batch 64", "--seconds", "0", "--json", str(tmp_path / "cpu.json")])
    figures = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["name"].split()[-1] for row in figures["rows"]] == ["forward", "backward"]
    assert all(row[figure] > 0 for row in figures["rows"] for figure in ("ours", "torchs", "ratio"))
    printed = capsys.readouterr().out
    assert "cores" in figures["machine"]
    assert figures["machine"] in printed


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_peak_of_a_layer(tmp_path):
    """A pooled 16 MiB input has a gradient of that size at least, and the loss reads all outputs."""
    peak.main(["--only", "pool1", "--batch", "892", "--json", str(tmp_path / "peak.json")])
    [row] = json.loads((tmp_path / "peak.json").read_text())
    gradient = 892 * math.prod((6, 28, 28)) * 4 / 2**20
    for namespace in ("ours", "torchs"):
        assert gradient <= row[namespace] <= 4 * gradient
