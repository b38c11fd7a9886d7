"""What every test needs, before torch or Triton is imported: one thread, and kernels that run without a GPU."""

import os

# Small operators fight over threads: each worker of pytest-xdist takes one.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import hypothesis  # noqa: E402 - after the environment
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
if torch.cuda.is_available():
    # The tests' tolerances are those of the operands' own type.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
else:
    # Triton reads this when it is imported, which torch alone does not do.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torchconv  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--examples", type=int, default=300, help="random examples of each family in tests/test_random.py")


def pytest_configure(config):
    hypothesis.settings.register_profile(
        "examples",
        max_examples=config.getoption("--examples"),
        deadline=None,
        print_blob=True,
        # The same examples for everybody who judges a change, others whenever somebody looks for more.
        derandomize="CI" in os.environ,
    )
    hypothesis.settings.load_profile("examples")


def pytest_collection_modifyitems(items):
    """What compiles for minutes goes first, or one worker has it left when the others are done."""
    items.sort(key=lambda item: item.path.name != "test_compile.py")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def nan_filled():
    """Every `torch.empty` holds NaN (the greatest integer), so that an element that nobody writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device(request, monkeypatch):
    """Where the tensors of a test live, for a path of `support.on_paths`; inside, CPU tensors take that path."""
    if request.param == "passes":
        monkeypatch.setattr("torchconv.eager.pool._FEW", 0)
    if request.param == "kernels" and torch.cuda.is_available():
        yield torch.device("cuda")
    elif request.param == "kernels":
        with torchconv.backend("triton"):
            yield torch.device("cpu")
    else:
        yield torch.device("cpu")
