"""`torch.nn.functional` with the convolutions and poolings of this package; every other name is torch's own."""

from typing import Any

import torch.nn.functional

from torchconv import functional as _ours
from torchconv.functional import *  # noqa: F403 - the package's functions under torch.nn's name

__all__ = list(_ours.__all__)


def passes_through(name: str) -> bool:
    """Whether a name of torch.nn is none of this package's subject, so that torch's own stands for it."""
    return not any(subject in name.lower() for subject in ("conv", "pool"))


def __getattr__(name: str) -> Any:
    if not passes_through(name):
        raise AttributeError(
            f"torchconv.nn.functional has no {name!r} of its own yet; torch's is torch.nn.functional.{name}"
        )
    return getattr(torch.nn.functional, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *filter(passes_through, dir(torch.nn.functional))})
