"""Writes docs/api.md from the docstrings:  python docs/make_api.py"""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torchconv
from torchconv import autograd, functional, nn

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API reference

Made from the docstrings by `python docs/make_api.py`; the tests check that it is up to date, and run its examples.
Functions and modules of one name and another rank (`conv1d`, `Conv3d`) take the same arguments; they are listed with
what differs.
"""
SECTIONS: dict[str, tuple[ModuleType, list[str]]] = {
    "torchconv": (torchconv, [name for name in torchconv.__all__ if not inspect.ismodule(getattr(torchconv, name))]),
    "torchconv.functional": (functional, functional.__all__),
    "torchconv.nn": (nn, [name for name in nn.__all__ if name != "functional"]),
    "torchconv.models": (torchconv.models, ["LeNet5"]),
    "torchconv.autograd": (autograd, autograd.__all__),
}


def signature(value: Any) -> str:
    """The arguments of a function or class, as they are written."""
    found = inspect.signature(value)
    written = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        default = getattr(parameter.default, "__name__", None) or repr(parameter.default)  # of a module, its name
        suffix = "" if parameter.default is parameter.empty else f" = {default}"
        written.append(f"{parameter.name}: {parameter.annotation}{suffix}")
    result = "" if inspect.isclass(value) else f" -> {found.return_annotation}"
    return f"({', '.join(written)}){result}"


def entry(name: str, value: Any) -> str:
    lines = inspect.cleandoc(value.__doc__ or "").splitlines()
    summary, rest = lines[0], "\n".join(lines[1:]).strip("\n")
    # A module's arguments are those of torch.nn's class, where it has no others.
    own = not inspect.isclass(value) or ("__init__" in vars(value) and not is_dataclass(value))
    text = f"### {name}\n\n```text\n{name}{signature(value) if own else ''}\n```\n\n{summary}\n"
    return f"{text}\n```text\n{rest}\n```\n" if rest else text


def page() -> str:
    parts = [HEAD]
    for title, (module, names) in SECTIONS.items():
        parts += [f"## {title}\n\n{inspect.cleandoc(module.__doc__ or '').splitlines()[0]}\n"]
        parts += [entry(name, getattr(module, name)) for name in names]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
