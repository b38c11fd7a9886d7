"""The kernels' tests share helpers with the benchmarks, which are not part of the installed package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
