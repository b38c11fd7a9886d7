"""The pages for maintainers and for looking things up agree with the code."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchconv

ROOT = Path(__file__).parents[1]


def test_api_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert make_api.PAGE.read_text() == make_api.page(), "run: python docs/make_api.py"
    names = set(re.findall(r"^### (\w+)$", make_api.page(), re.MULTILINE))
    assert names >= {"convert", "Report", "LeNet5", *torchconv.functional.__all__, *torchconv.nn.__all__} - {
        "functional"
    }


def test_changelog_has_this_version():
    """The headings of keepachangelog.com, the newest release first; what is built from a tag is one of them."""
    unreleased, *releases = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert unreleased == "Unreleased"
    numbers = [tuple(map(int, release.split("."))) for release in releases]
    assert numbers == sorted(numbers, reverse=True) != []
    version = torchconv.__version__
    assert "dev" in version or "+" in version or version in releases


def test_contributing_names_files_that_exist():
    paths = re.findall(r"`([\w/.]+\.(?:py|md|toml))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []


def run(code: str, *arguments: Path) -> str:
    """What a Python of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_importing_leaves_triton_alone():
    """Triton decides when it is imported whether it interprets."""
    assert run("import sys, torchconv; print('triton' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("first", ["torchconv", "torch.utils.flop_counter"])
def test_flops_by_order_of_imports(first):
    """The counter has the formulas, whichever comes first."""
    code = f"""if True:
        import torch, {first}, torchconv
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            torchconv.functional.conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 3))
        print(counter.get_total_flops())
    """
    assert int(run(code)) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("file", "source"),
    [("triton_kernels/__init__.py", "raise ImportError('of something else')"), ("triton_kernels.py", "matmul = None")],
)
def test_another_package_of_the_kernels_name(tmp_path, file, source):
    """Where Python finds it rather than ours, importing torchconv says so once, and how to mend it; all else works."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(source)
    code = """if True:
        import sys, warnings
        sys.path.insert(0, sys.argv[1])
        import torch
        with warnings.catch_warnings(record=True) as said:
            import torchconv
        print(*(warning.message for warning in said), sep="\\n")
        x = torch.randn(1, 1, 4, 4)
        torchconv.functional.max_pool2d(x, 2)
        try:
            with torchconv.backend("triton"):
                torchconv.functional.max_pool2d(x, 2)
        except RuntimeError as error:
            print(error)
    """
    said, raised = run(code, tmp_path).splitlines()
    assert said == raised
    assert f"another package of that name in {(tmp_path / file).parent if '/' in file else tmp_path / file}: " in said
    assert "pip uninstall triton_kernels" in said
