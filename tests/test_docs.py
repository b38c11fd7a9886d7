"""The documentation: its numbers, formulas, examples, commands and links are those of the code."""

import ast
import doctest
import importlib
import pkgutil
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import Recorder, on_paths
from torch import Tensor
from torch.testing import assert_close

import torchconv

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GRADIENTS = ROOT / "docs" / "gradients.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


# The worked examples of docs/gradients.md: matrices side by side under their names, then formulas with their values.


def examples() -> dict[str, str]:
    """The text block after each comment <!-- example: NAME -->, by name."""
    return dict(re.findall(r"^<!-- example: ([^\n]*) -->\n```text\n(.*?)^```$", GRADIENTS.read_text(), re.M | re.S))


def matrices(block: str) -> dict[str, Tensor]:
    """The matrices of a block by the names above them, each of which stands where its first column begins."""
    result = {}
    for paragraph in block.split("\n\n"):
        # A letter and the accents that combine with it stand in one column.
        lines = [line for line in paragraph.splitlines() if not is_formula(line)]
        if lines:
            names, *rows = (re.findall(r"\S[\u0300-\u036f]*|\s", line) for line in lines)
            starts = [i for i, cell in enumerate(names) if cell != " " and [*"  ", *names][i : i + 2] == [" ", " "]]
            for start, stop in zip(starts, [*starts[1:], None]):
                cells = ["".join(row[start:stop]).split() for row in rows]
                numbers = torch.tensor([[float(number) for number in row] for row in cells if row])
                result["".join(names[start:stop]).strip()] = numbers
    return result


def named(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices whose name begins with a variable, by that variable: 'x̄' for 'x̄, s = 2' or 'x̄ = g * w'."""
    variables = {name: name.split(" = ")[0] for name in found}
    return {
        unicodedata.normalize("NFKC", left.split(",")[0]): found[name]
        for name, left in variables.items()
        if left.split(",")[0].isidentifier() and "padded" not in left
    }


def given() -> dict[str, Tensor]:
    """x, w and g of the first example, which those after it use."""
    return named(matrices(examples()["convolution"]))


Functions = Any  # a module with the functions of torch.nn.functional
Matrices = dict[str, Tensor]


def run(function: Callable[..., Tensor], *tensors: Tensor, **arguments: Any) -> Tensor:
    """A function of images on matrices."""
    return function(*(t[None, None] for t in tensors), **arguments)[0, 0]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], g: Tensor, **arguments: Any) -> list[Tensor]:
    """The gradients of such a function's arguments, each differentiable."""
    leaves = [t.requires_grad_() if t.is_leaf else t for t in tensors]
    return list(torch.autograd.grad(run(function, *leaves, **arguments), leaves, g, create_graph=True))


def padded(t: Tensor, low: int, high: int) -> Tensor:
    return torch.nn.functional.pad(t, (low, high, low, high))


def convolution(F: Functions, m: Matrices) -> Matrices:
    return {"y = x * w": run(F.conv2d, m["x"], m["w"])}


def input_gradient(F: Functions, m: Matrices) -> Matrices:
    flipped = m["w"].flip(0, 1)
    x_bar = gradients(F.conv2d, [m["x"], m["w"]], m["g"])[0]
    assert_close(run(F.conv2d, padded(m["g"], 1, 1), flipped), x_bar)
    assert_close(run(F.conv_transpose2d, m["g"], m["w"]), x_bar)
    return {"g, padded": padded(m["g"], 1, 1), "flip(w)": flipped, "x̄ = g, padded * flip(w)": x_bar}


def strided_input_gradient(F: Functions, m: Matrices) -> Matrices:
    return {"x̄, s = 2, p = 1": gradients(F.conv2d, [m["x"], m["w"]], m["g"], stride=2, padding=1)[0]}


def strided_and_dilated_input_gradient(F: Functions, m: Matrices) -> Matrices:
    x_bar = gradients(F.conv2d, [m["x"], m["w"]], m["g"], stride=2, padding=1, dilation=2)[0]
    return {"x̄, s = 2, p = 1, d = 2": x_bar}


def kernel_gradient(F: Functions, m: Matrices) -> Matrices:
    x, w, bias = m["x"][None, None], m["w"][None, None].requires_grad_(), m["x"].new_zeros(1, requires_grad=True)
    w_bar, b_bar = torch.autograd.grad(F.conv2d(x, w, bias), (w, bias), m["g"][None, None])
    assert_close(run(F.conv2d, m["x"], m["g"]), w_bar[0, 0])
    return {"w̄ = x * g": w_bar[0, 0], "b̄": b_bar[None]}


def flipped_convention(F: Functions, m: Matrices) -> Matrices:
    x, g = m["x"].flip(0, 1), m["g"].flip(0, 1)
    w_bar = gradients(F.conv2d, [m["x"], m["w"]], m["g"])[1]
    assert_close(run(F.conv2d, x, g), w_bar.flip(0, 1))
    return {"flip(x)": x, "flip(g)": g, "κ̄ = flip(x) * flip(g)": w_bar.flip(0, 1)}


def padding_same(F: Functions, m: Matrices) -> Matrices:
    flipped = m["w"].flip(0, 1)
    x_bar = gradients(F.conv2d, [m["x"], m["w"]], m["h"], padding="same")[0]
    assert_close(run(F.conv2d, padded(m["h"], 1, 0), flipped), x_bar)
    return {
        "x, padded": padded(m["x"], 0, 1),
        "y = x, padded * w": run(F.conv2d, m["x"], m["w"], padding="same"),
        "h, padded": padded(m["h"], 1, 0),
        "x̄ = h, padded * flip(w)": x_bar,
    }


def second_derivatives(F: Functions, m: Matrices) -> Matrices:
    w, g = (m[name].requires_grad_() for name in "wg")
    x_bar = gradients(F.conv2d, [m["x"], w], g)[0]
    by_g, by_w = torch.autograd.grad(x_bar, (g, w), m["h"])
    assert_close(run(F.conv2d, m["h"], w), by_g)
    assert_close(run(F.conv2d, m["h"], g), by_w)
    return {"∂⟨h, x̄⟩/∂g = h * w": by_g, "∂⟨h, x̄⟩/∂w = h * g": by_w}


def max_pooling(F: Functions, m: Matrices) -> Matrices:
    y, index = F.max_pool2d(m["x"][None, None], 2, stride=1, return_indices=True)
    row, column = index[0, 0] // 3, index[0, 0] % 3
    taps = (row - torch.arange(2)[:, None].to(row)) * 2 + column - torch.arange(2).to(row)
    return {"y": y[0, 0], "taps": taps, "x̄": gradients(F.max_pool2d, [m["x"]], m["g"], kernel_size=2, stride=1)[0]}


def average_pooling(F: Functions, m: Matrices) -> Matrices:
    arguments: dict[str, Any] = {"kernel_size": 2, "stride": 2, "ceil_mode": True}
    y, sums = (run(F.avg_pool2d, m["x"], **arguments, divisor_override=divisor) for divisor in (None, 1))
    sizes = run(F.avg_pool2d, torch.ones_like(m["x"]), **arguments, divisor_override=1)
    assert_close(y, sums / sizes)
    (x_bar,) = gradients(F.avg_pool2d, [m["x"]], m["g"], **arguments)
    assert_close(x_bar, (m["g"] / sizes).repeat_interleave(2, 0).repeat_interleave(2, 1)[:3, :3])
    return {"y, s = 2": y, "m": sizes, "x̄ = g / m, upsampled": x_bar}


def overlapping_average_pooling(F: Functions, m: Matrices) -> Matrices:
    return {
        "g / m": m["g"] / 4,
        "x̄, s = 1": gradients(F.avg_pool2d, [m["x"]], m["g"], kernel_size=2, stride=1)[0],
    }


# What each example shows beside what it is given: its own matrices of these names, and x, w and g of the first.
SHOWN: dict[str, tuple[Callable[[Functions, Matrices], Matrices], set[str]]] = {
    "convolution": (convolution, {"x", "w", "g"}),
    "input gradient": (input_gradient, set()),
    "strided input gradient": (strided_input_gradient, set()),
    "strided and dilated input gradient": (strided_and_dilated_input_gradient, set()),
    "kernel gradient": (kernel_gradient, set()),
    "flipped convention": (flipped_convention, set()),
    "padding same": (padding_same, {"h"}),
    "second derivatives": (second_derivatives, {"h"}),
    "max pooling": (max_pooling, {"x", "g"}),
    "average pooling": (average_pooling, {"x", "g"}),
    "overlapping average pooling": (overlapping_average_pooling, {"g"}),
}


def check(name: str, functions: Functions, device: torch.device) -> None:
    shown, (compute, own) = matrices(examples()[name]), SHOWN[name]
    tensors = {variable: t.to(device) for variable, t in (given() | {key: shown[key] for key in own}).items()}
    computed = compute(functions, tensors)
    assert set(shown) == set(computed) | own
    for key, value in computed.items():
        assert_close(value.detach().cpu().to(shown[key].dtype), shown[key], rtol=0, atol=0, msg=lambda m: f"{key}: {m}")  # noqa: B023


@pytest.mark.parametrize(("device", "name"), on_paths(SHOWN), indirect=["device"])
def test_matrices_are_what_the_code_computes(device, name):
    check(name, torchconv.functional, device)


@pytest.mark.parametrize("name", SHOWN)
def test_matrices_are_what_torch_computes(name):
    check(name, torch.nn.functional, torch.device("cpu"))


def test_every_example_is_checked():
    assert set(examples()) == {*SHOWN, "residue classes"}
    assert len(blocks(GRADIENTS, "text")) == len(examples())


def formulas() -> list[Any]:
    """Lines such as `x̄[0,0] = g[0,0]·w[0,0] = 1·1 = 1`, with the example that they belong to."""
    lines = ((name, line) for name, block in examples().items() for line in block.splitlines())
    return [pytest.param(name, line, id=line.split(" = ")[0] + " " + name) for name, line in lines if is_formula(line)]


def is_formula(line: str) -> bool:
    return bool(re.match(r"\w[\u0304]?(\[\d,\d\])? = .*\d$", line))


@pytest.mark.parametrize(("name", "line"), formulas())
def test_formulas(name, line):
    values = given() | named(matrices(examples()[name]))
    sides = unicodedata.normalize("NFKC", line).replace("·", "*").split(" = ")
    assert len(sides) >= 3
    assert {float(eval(side, {}, values)) for side in sides} == {float(sides[-1])}
    if len(sides) == 4:  # the third side is the second with its values, also where they are multiplied by zero

        def value(element: re.Match[str]) -> str:
            number = int(eval(element[0], {}, values))
            return f"({number})" if number < 0 else f"{number}"

        assert re.sub(r"\w[\u0304]?\[\d,\d\]", value, sides[1]) == sides[2]


def test_there_are_formulas():
    assert len(formulas()) >= 8


def test_residue_classes():
    labelled = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in examples()["residue classes"].splitlines())
    rows = {label.split()[0]: cells.split() for label, cells in labelled.items()}
    assert "class r = i mod 2" in labelled
    stride, kernel, padding = 2, 3, 1
    for i, classes, taps, outputs in zip(*(rows[key] for key in ("input", "class", "taps", "outputs"))):
        assert int(classes) == int(i) % stride
        reach = [k for k in range(kernel) if (int(i) + padding - k) % stride == 0]
        assert list(map(int, taps.split(","))) == reach
        assert list(map(int, outputs.split(","))) == [(int(i) + padding - k) // stride for k in reach]


# Code in the documentation.


def run_doctest(test: doctest.DocTest) -> None:
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert results.attempted > 0
    assert not results.failed, "".join(report)


def skip_if_compiled(code: str) -> None:
    if "backend(" in code and torch.cuda.is_available():
        pytest.skip("kernels are compiled in this process")


def test_session_in_gradients():
    session = "\n".join(block for block in blocks(GRADIENTS, "python") if ">>>" in block)
    run_doctest(doctest.DocTestParser().get_doctest(session, {}, GRADIENTS.name, str(GRADIENTS), 0))


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_in_readme(code):
    """It runs, and what convolves and pools in it is this package."""
    skip_if_compiled(code)
    with Recorder() as recorder:
        exec(compile(code, str(README), "exec"), {})
    assert recorder.ours
    assert not recorder.forbidden


def test_example_in_readme_is_short():
    code = blocks(README, "python")[0]
    assert "from torchconv import nn" in code
    assert len(code.splitlines()) <= 12


def docstrings() -> list[Any]:
    """Every docstring with an example, of all modules but those of `train.py`, whose examples need data."""
    names = [module.name for module in pkgutil.walk_packages(torchconv.__path__, "torchconv.")]
    names = ["torchconv", *(name for name in names if not name.startswith("torchconv.training"))]
    finder = doctest.DocTestFinder()
    tests = [test for name in names for test in finder.find(importlib.import_module(name)) if test.examples]
    return [pytest.param(test, id=test.name) for test in tests]


@pytest.mark.parametrize("test", docstrings())
def test_docstring_examples(test):
    skip_if_compiled(test.docstring)
    test.globs.update(torch=torch, torchconv=torchconv, x=torch.randn(1, 1, 4, 4), w=torch.randn(1, 1, 3, 3))
    run_doctest(test)


def test_docstrings_have_examples():
    found = {parameter.id for parameter in docstrings()}
    assert any(name.endswith(".backend") for name in found)
    assert any(name.endswith(".LeNet5") for name in found)
    for name in ("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "Conv2d", "MaxPool2d"):
        assert any(test.split(".")[-1] == name for test in found), name


# What the README says there is.


@pytest.mark.parametrize(
    ("job", "command"),
    [("main", "pip install -e '.[train]' && python train.py"), ("test", "pip install -e '.[test]' && pytest")],
)
def test_commands(job, command):
    """As the CI script finds them: the one line of the fenced block right below the comment."""
    assert re.findall(rf"^<!-- ci: {job} -->\n```\w*\n(.*?)```$", README.read_text(), re.M | re.S) == [command + "\n"]


def expanded(text: str) -> set[str]:
    """`conv1d`, `conv2d` and `conv3d` for `conv{1,2,3}d`."""
    found = re.search(r"\{(.*?)\}", text)
    if not found:
        return {text}
    return {name for part in found[1].split(",") for name in expanded(text.replace(found[0], part, 1))}


@pytest.mark.parametrize(
    ("module", "heading"), [(torchconv.functional, "Functions"), (torchconv.nn, "Modules")], ids=["functional", "nn"]
)
def test_table_of_names(module: ModuleType, heading: str):
    """The README's rows of functions and modules name what the package exports, and nothing else."""
    (row,) = re.findall(rf"^\| {heading} .*$", README.read_text(), re.MULTILINE)
    written = set().union(*(expanded(code) for code in re.findall(r"`(.*?)`", row)))
    assert written == {name for name in module.__all__ if name != "functional"}


# Links.


def links(page: Path) -> list[tuple[str, str]]:
    """The (text, target) of every link in a page, outside code blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\[([^\[\]]+)\]\(([^()\s]+)\)", text)


def defined_in(path: Path) -> set[str]:
    """The functions, classes, methods and variables of a file, such as `Conv`, `Conv.backward` and `_SHARED_AXES`."""

    def names(body: list[ast.stmt], prefix: str) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    found |= names(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return names(ast.parse(path.read_text()).body, "")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for text, target in links(page):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        name = text.strip("`")
        if not path.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            broken.append(f"{target}: no such heading")
        elif path.suffix == ".py" and re.fullmatch(r"`[\w.]+`", text) and name not in {path.name, *defined_in(path)}:
            broken.append(f"{target} does not define {name}")
    assert not broken
