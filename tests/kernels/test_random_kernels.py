"""Random geometries in the kernels, checked inside where they are interpreted: bounds, races, unwritten elements.

The same draws as tests/test_random.py, of small sizes and a twentieth as many: the interpreter takes about a second for
the kernels of one.
"""

import contextlib

import pytest
from hypothesis import given, settings
from launches import DEVICE, checking
from test_random import FAMILIES, calls, check

import torchconv
from triton_kernels import INTERPRETED


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("family", FAMILIES)
def test_random(family):
    fewer = settings(max_examples=max(1, settings.default.max_examples // 20))

    @fewer
    @given(calls(family, small=INTERPRETED))
    def run(call):
        with torchconv.backend("triton") if INTERPRETED else contextlib.nullcontext(), checking():
            check(call, DEVICE)

    run()
