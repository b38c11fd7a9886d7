"""SIGINT and SIGTERM: finish the step, save, say how to resume, leave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from torchconv.training.distributed import World

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal asked for the end, and no step is half done."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Guard:
    """Inside a `with` block, the first signal waits until a batch is done, then `save` is called; a second one acts
    at once, as ever.

    Example::

        >>> with Guard(world, state.save) as guard:
        ...     for images, labels in guard(batches):  # raises Stopped between two batches
        ...         ...
    """

    def __init__(self, world: World, save: Callable[[], None]) -> None:
        self.world, self.save = world, save
        self.number = 0

    def __enter__(self) -> Guard:
        self._before = [signal.signal(number, self._note) for number in SIGNALS]
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, Stopped):
            self.save()
        self._handlers_as_before()

    def _handlers_as_before(self) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._handlers_as_before()

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """The items, as long as no process was asked to stop: all of them stop after the same one."""
        for item in items:
            yield item
            number = self.world.largest(self.number)
            if number:
                raise Stopped(number)
