"""Every kernel compiles for every GPU, in all types and tiles, without spills and with matrix instructions."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# What has no matrix instruction: float32 on NVIDIA, unless the user allows TF32.
NO_MATRIX = {("sm_80", "float32"), ("sm_90", "float32"), ("sm_100", "float32")}


@pytest.mark.parametrize("target", TARGETS)
def test_compile(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("aot.py")), target]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines()]
    compiled = [r for r in results if "kernel" in r]

    def complaint(r, what):
        return f"{target} {r['dtype']} {r['case']} {r.get('kernel', '')}: {what}"

    bad = [complaint(r, r["error"]) for r in results if "error" in r]
    # Where registers are just above a number that lets one more block run, ptxas may spill one to get below it: the
    # mend is to need fewer.
    spilling = [r for r in compiled if r["stack"]]
    bad += [complaint(r, f"{r['stack']} bytes of stack, {r['registers']} registers") for r in spilling]
    for r in compiled:
        multiplies = r["kernel"].startswith(("conv", "block"))  # not the depthwise ones
        if multiplies and not r["matrix"] and (target, r["dtype"]) not in NO_MATRIX:
            bad.append(complaint(r, "no matrix instruction"))
    assert not bad, "\n".join([f"{len(bad)} of {len(compiled)} kernels", *bad])

    # The cases reach both sides of every branch that a kernel is compiled with.
    values = defaultdict(set)
    for r in compiled:
        for name, value in r["switches"].items():
            values[r["kernel"], name].add(value)
    one_sided = {key: both for key, both in values.items() if both in ({True}, {False})}
    assert not one_sided
