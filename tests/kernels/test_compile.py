"""Every kernel compiles for every GPU, for one in all types and tiles, without spills and with matrix instructions."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ALL = "sm_90"
FAMILIES = ("conv", "block", "pool")
# What has no matrix instruction: float32 on NVIDIA, unless the user allows TF32.
NO_MATRIX = {("sm_80", "float32"), ("sm_90", "float32"), ("sm_100", "float32")}

# What of an aligned channels_last operand in half precision goes by fewer than 16 bytes, in bits, and why.
NARROW = {
    # A weight [channels, taps]: the channels of one tap lie apart.  It is small, and stays in the cache.
    ("depthwise_fprop_kernel", "loads"): {16},
    ("depthwise_dgrad_kernel", "loads"): {16},
    # Partial sums of such a weight, likewise.
    ("depthwise_wgrad_kernel", "stores"): {32},
    # Four halves, of 16 bytes of sums.
    ("add_splits_kernel", "stores"): {64},
    # Every channel has a winner, or a window, of its own: neighbours lie anywhere.
    ("max_pool_gather_kernel", "loads"): {16},
    ("fractional_max_pool_kernel", "loads"): {16},
}
WINNERS = 64  # a byte for each of the eight elements that go at a time
# On AMD the compiler stores products as the matrix instruction leaves them: four elements a lane.
AMD_PRODUCTS = ("conv_fprop_kernel", "conv_dgrad_kernel", "block_fprop_kernel")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS)
def test_compile(target, family):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("aot.py")), target, family]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines()]
    compiled = [r for r in results if "kernel" in r]

    def complaint(r, what):
        return f"{target} {r['dtype']} {r['case']} {r.get('kernel', '')}: {what}"

    bad = [complaint(r, r["error"]) for r in results if "error" in r]
    # Where registers are just above a number that lets one more block run, ptxas may spill one to get below it.  Mends
    # are to need fewer, or `all_registers`.
    spilling = [r for r in compiled if r["stack"]]
    bad += [complaint(r, f"{r['stack']} bytes of stack, {r['registers']} registers") for r in spilling]
    for r in compiled:
        multiplies = r["kernel"].startswith(("conv", "block"))  # not the depthwise ones
        if multiplies and not r["matrix"] and (target, r["dtype"]) not in NO_MATRIX:
            bad.append(complaint(r, "no matrix instruction"))
    aligned = [r for r in results if "aligned" in r]
    for r in aligned:
        for kind in ("loads", "stores"):
            if not_wide := narrow(target, r, kind):
                bad.append(complaint(r, f"{r['aligned']} {kind} {sorted(not_wide)} bits at a time"))
    assert aligned
    assert not bad, "\n".join([f"{len(bad)} of {len(compiled)} kernels", *bad])

    # The cases reach both sides of every branch that a kernel is compiled with: those for the GPU that has them all.
    values = defaultdict(set)
    for r in compiled if target == ALL else ():
        for name, value in r["switches"].items():
            values[r["kernel"], name].add(value)
    one_sided = {key: both for key, both in values.items() if both in ({True}, {False})}
    if family == "block":  # its depthwise kernels are the convolutions'
        one_sided = {key: both for key, both in one_sided.items() if key[0].startswith("block")}
    assert not one_sided


def narrow(target, r, kind):
    """The widths below 16 bytes that nothing excuses; 0 if there is no access of 16 bytes where there should be."""
    kernel, widths = r["aligned"], set(r[kind])
    excused = set(NARROW.get((kernel, kind), ()))
    if r["case"].startswith(("block", "pool")):
        excused.add(WINNERS)
    if target == "gfx942" and kind == "stores" and kernel in AMD_PRODUCTS:
        excused |= {64, 32}  # and four winners
        widths.add(128)
    if (kernel, kind) in NARROW and ("depthwise" not in kernel or kind == "stores"):
        widths.add(128)  # nothing but what is excused
    return widths - {128} - excused or ({128} - widths and {0})
