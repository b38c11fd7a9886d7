"""Existing models: their convolutions and poolings become this package's, or torch.nn's again.

A module stays the object that it is: what changes is its class, and with it what `forward` calls.  So parameters,
buffers, hooks, parametrisations, and whoever else holds the module (an optimiser, a parent) notice nothing.
"""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils import parametrize

from torchconv import nn
from torchconv.integers import as_tuple

Module = torch.nn.Module

_OURS: dict[type, type] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__ if isinstance(getattr(torch.nn, name, None), type)
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}
# What decides how a module computes; a subclass that defines any of them computes in its own way.
_COMPUTING = ("__call__", "forward", "_conv_forward", "cls_to_become")
_DEVICES = ("cpu", "cuda", "meta")


@dataclass(repr=False)
class Report:
    """What became of the convolutions and poolings of a model.

    Attributes:
        action: what was done: 'converted', 'reverted' or 'fused'.
        done: the names of the modules that it was done to, and the classes that they had.
        left: the names of those that it was not done to, and why.
    """

    action: str
    done: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {kind}" for kind, n in Counter(self.done.values()).items())
        lines = [f"{self.action} {counts or 'nothing'}"]
        lines += [f"left {name or 'the model itself'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def convert(model: Module) -> Report:
    """Make every convolution and pooling module of a model this package's, in place.

    The modules remain the same objects, with their parameters, buffers, hooks, parametrisations and mode.  A subclass
    of one of torch.nn's classes is converted where it leaves the computing to torch.nn, and keeps its other methods.

    Args:
        model: any module, itself a convolution or a pooling included.

    Returns:
        What was converted, and what was left and why.  Convolutions and poolings that a `forward` computes by calling
        functions are no modules, and not in it: for those there is `torchconv.override`.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> torchconv.convert(model)
        converted 1 Conv2d, 1 MaxPool2d
        >>> isinstance(model[0], torchconv.nn.Conv2d)
        True
    """
    _check(model)
    return _change(Report("converted"), model, _ours)


def revert(model: Module) -> Report:
    """Make every convolution and pooling module of a model torch.nn's, in place: undo `convert` and `fuse`.

    Args:
        model: any module; one that was built of this package's modules will do as well.

    Returns:
        What was reverted, and what was left and why.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> model = torchconv.nn.Sequential(torchconv.nn.Conv2d(1, 6, 5), torchconv.nn.MaxPool2d(2))
        >>> torchconv.revert(model)
        reverted 1 Conv2d, 1 MaxPool2d
        >>> type(model[0]) is torch.nn.Conv2d
        True
    """
    _check(model)
    report = Report("reverted")
    for path, parent in model.named_modules():
        if isinstance(parent, torch.nn.Sequential):
            report.done |= _unfuse(path, parent)
    return _change(report, model, _torchs)


def fuse(model: Module) -> Report:
    """Replace each convolution, ReLU and max pooling in a row in an `nn.Sequential` by the fused block, in place.

    The convolution, torch.nn's or this package's, becomes a `torchconv.nn.ConvReLUMaxPool2d`, the same object with the
    same parameters; the two others give way to `nn.Identity`, so positions and the keys of the state_dict remain.
    Whoever reads what goes on between the three, by running a part of the Sequential, reads something else afterwards.

    Args:
        model: any module.

    Returns:
        Which convolutions were fused, and which ones in such a row were left and why.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> torchconv.fuse(model)
        fused 1 Conv2d
        >>> model
        Sequential(
          (0): ConvReLUMaxPool2d(1, 6, kernel_size=(5, 5), stride=(1, 1), pool_size=2)
          (1): Identity()
          (2): Identity()
        )
    """
    _check(model)
    report = Report("fused")
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for path, parent in model.named_modules():
        if not isinstance(parent, torch.nn.Sequential):
            continue
        for first, second, third in _threes(parent):
            conv, relu, pool = (parent._modules[key] for key in (first, second, third))
            kinds = (torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d)
            if not all(map(isinstance, (conv, relu, pool), kinds)) or isinstance(conv, nn.ConvReLUMaxPool2d):
                continue
            name = _joined(path, first)
            obstacle = "it stands in several places" if places[id(conv)] > 1 else _obstacle(parent, conv, relu, pool)
            if obstacle:
                report.left[name] = obstacle
                continue
            report.done[name] = type(conv).__name__
            conv.__class__, conv.pool_size = nn.ConvReLUMaxPool2d, pool.kernel_size
            for key in (second, third):
                place = torch.nn.Identity().train(parent._modules[key].training)
                vars(place)["replaced"] = (parent._modules[key],)  # for `revert`; in a tuple, so it is no child
                setattr(parent, key, place)
    return report


def _check(model: object) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")


def _change(report: Report, model: Module, target: Callable[[Module], type | str | None]) -> Report:
    """Give every module its `target`: a class, or None for the one that it has, or the reason why it keeps that."""
    # All are found before the first is given: making a class may run, and fail in, a metaclass of the user's.
    targets = [(name, module, target(module)) for name, module in model.named_modules()]
    for name, module, result in targets:
        if isinstance(result, str):
            report.left[name] = result
        elif result is not None:
            report.done[name] = type(module).__name__
            module.__class__ = result
    return report


def _ours(module: Module) -> type | str | None:
    cls = _plain(module)
    base = next((base for base in cls.__mro__ if base in _OURS or base in _TORCHS), None)
    if base is None:
        name = getattr(module, "original_name", cls.__name__)  # of a module that TorchScript has compiled
        subject = not nn.functional.passes_through(name) and not any(True for _ in module.children())
        return f"{cls.__module__}'s {name} is not one of torch.nn's classes" if subject else None
    if base in _TORCHS:
        return None
    own = [name for name in _COMPUTING if getattr(cls, name, None) is not getattr(base, name, None)]
    own += _computed_by_itself(module)
    if own:
        return f"{cls.__name__} has a {own[0]} of its own; torchconv.override() routes the functions that it calls"
    elsewhere = {t.device.type for t in module.parameters()}.difference(_DEVICES)
    if elsewhere:
        return f"its parameters are on {elsewhere.pop()!r}, for which there are no kernels"
    return _parametrised_as(module, _OURS[base] if cls is base else _computing_as(cls, _OURS[base]))


def _torchs(module: Module) -> type | str | None:
    cls = _plain(module)
    original = vars(cls).get("_original", _TORCHS.get(cls))
    if original is not None:
        return _parametrised_as(module, original)
    if cls is nn.ConvReLUMaxPool2d:
        return "a fused block by itself has no counterpart in torch.nn"
    base = next((base for base in cls.__mro__ if base in _TORCHS), None)
    return f"{cls.__name__} is a subclass of torchconv.nn.{base.__name__}" if base else None


def _plain(module: Module) -> type:
    """The class of a module, without what torch's parametrisations have put on top."""
    return type(module).__bases__[0] if _has_parametrised_class(module) else type(module)


def _has_parametrised_class(module: Module) -> bool:
    return parametrize.is_parametrized(module) and type(module).__name__.startswith("Parametrized")


def _parametrised_as(module: Module, cls: type) -> type:
    """`cls`, with on top what torch's parametrisations have put on the class of `module`.

    That is a class made for one module, with a property for each parametrised tensor; copies of the module share it,
    so it is made anew rather than changed.
    """
    if not _has_parametrised_class(module):
        return cls
    body = {key: value for key, value in vars(type(module)).items() if key not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{cls.__name__}", (cls,), body)


@functools.cache
def _computing_as(cls: Any, ours: Any) -> Any:
    """A subclass of torch.nn's, `cls`, that inherits this package's way of computing and is called the same."""

    def reduce(self: Any, protocol: Any) -> Any:
        # Pickle knows a class by its name, and that is another one's.
        _, _, *state = super(converted, self).__reduce_ex__(protocol)
        return _blank, (cls, ours), *state

    body = {"_original": cls, "__reduce_ex__": reduce, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    bases = (_Unannounced, cls, ours)
    converted: Any = types.new_class(cls.__name__, bases, exec_body=lambda namespace: namespace.update(body))
    return converted


class _Unannounced:
    """A base, to stand first, of classes that their other bases' `__init_subclass__` is not told of.

    It may keep a register by name, in which a converted class would take the place of the user's.
    """

    def __init_subclass__(cls) -> None:
        pass


def _blank(cls: type, ours: type) -> Any:
    """A module without its state: the first half of unpickling it."""
    converted = _computing_as(cls, ours)
    return converted.__new__(converted)


def _threes(parent: Module) -> list[tuple[str, str, str]]:
    keys = list(parent._modules)
    return list(zip(keys, keys[1:], keys[2:]))


def _computed_by_itself(module: Module) -> list[str]:
    """What an instance computes otherwise than its class."""
    return [name for name in _COMPUTING if name in vars(module)]


def _obstacle(parent: Module, conv: Any, relu: Any, pool: Any) -> str | None:
    """Why these three cannot be a block; None if they can."""
    if type(parent).forward is not torch.nn.Sequential.forward or _computed_by_itself(parent):
        return f"{type(parent).__name__} has a forward of its own"
    for module, exact in ((conv, "Conv2d"), (relu, "ReLU"), (pool, "MaxPool2d")):
        if type(module) not in (getattr(torch.nn, exact), getattr(nn, exact)):
            return f"{type(module).__name__} is not {exact} itself"
        if own := _computed_by_itself(module):
            return f"{exact} has a {own[0]} of its own"
        if any(value for key, value in vars(module).items() if key.endswith("_hooks")):
            return f"{exact} has hooks"
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    if not conv.weight.is_floating_point():
        return f"its parameters are {conv.weight.dtype}"
    kernel, stride, padding, dilation = (
        as_tuple(getattr(pool, name), 2, name) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    if kernel != stride or padding != (0, 0) or dilation != (1, 1) or pool.ceil_mode or pool.return_indices:
        return "the pooling's windows do not tile its input, or it returns more than their maxima"
    if kernel[0] * kernel[1] > 255:
        return "the pooling's windows span more than 255 pixels"
    return None


def _unfuse(path: str, parent: torch.nn.Sequential) -> dict[str, str]:
    """Every block and the two `Identity` that `fuse` left behind it, as the three modules that they were."""
    done = {}
    for first, second, third in _threes(parent):
        block, *places = (parent._modules[key] for key in (first, second, third))
        if type(block) is nn.ConvReLUMaxPool2d and all("replaced" in vars(place) for place in places):
            for key, place in zip((second, third), places):
                setattr(parent, key, vars(place)["replaced"][0].train(place.training))
            del block.pool_size
            block.__class__ = torch.nn.Conv2d  # type: ignore[assignment]
            done[_joined(path, first)] = "ConvReLUMaxPool2d"
    return done


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
