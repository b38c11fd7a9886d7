"""A bar on the terminal while a training lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, label: str, first: int = 0) -> Iterator[T]:
    """The items, with a bar that starts at `first`; nothing where the output is a file or a pipe."""
    from tqdm import tqdm

    yield from tqdm(
        items, total=total, initial=first, desc=label, unit="batch", leave=False, disable=None, dynamic_ncols=True
    )
