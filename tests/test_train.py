"""train.py as a user calls it, and what it has to reach; its parts are tested in `tests/train/`."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
