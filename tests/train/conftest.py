"""Calls train.py in this process."""

import sys

import pytest
from files import ROOT

sys.path.insert(0, str(ROOT))  # train.py is a program, not a part of the package

import train


@pytest.fixture
def start(tmp_path, capfd, monkeypatch):
    """Call train.py; returns exit status, standard output, standard error and the run's folder.

    Pictures take longer than the tiny trainings here, so there are none unless they are asked for.
    """

    def start(*arguments, name="run", pictures=False):
        if not pictures:
            monkeypatch.setattr(train, "draw_all", lambda *_: None)
        arguments = ["--device", "cpu", *map(str, arguments)]
        if "--resume" not in arguments:
            arguments += ["--runs-dir", str(tmp_path / "runs"), "--name", name]
        try:
            status = train.main(arguments)
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr(), tmp_path / "runs" / name

    return start
