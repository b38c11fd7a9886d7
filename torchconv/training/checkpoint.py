"""What a training that is continued needs, so that it ends as if it had never been interrupted."""

from __future__ import annotations

import math
import random
from typing import Any, Protocol

import torch
from torch import Tensor

from torchconv.training import UserError
from torchconv.training.distributed import World
from torchconv.training.runs import Run, one_line, read_tensors

FILE = "checkpoint.pt"


class Stateful(Protocol):
    """Model, optimiser, schedule, scaler: whatever changes with a step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class State:
    """Where a training is: the position in the data, and everything that a step changes.

    Args:
        run: where checkpoints go.
        world: the processes that train together.
        identity: what must not change between interruption and continuation.
        every: steps from one checkpoint to the next; None for none within an epoch.
        parts: the objects whose state is saved, by name.

    Attributes:
        epoch: how many epochs are complete.
        batch: how many batches of the next one are.
        best: accuracy and negated loss on the validation images, of the weights that are kept.
    """

    def __init__(
        self, run: Run, world: World, identity: dict[str, Any], every: int | None = None, **parts: Stateful
    ) -> None:
        self.run, self.world, self.identity, self.every, self.parts = run, world, identity, every, parts
        self.epoch = self.batch = 0
        self._losses: list[float] = []
        self._unread: list[Tensor] = []
        self.best = (-1.0, 0.0)

    def record(self, loss: Tensor) -> None:
        """One more step is done."""
        self.batch += 1
        self._unread.append(loss.detach())  # reading makes a GPU wait for its host, so that is for later
        if self.every and self.batch % self.every == 0:
            self.save()

    def read_losses(self) -> list[float]:
        """This epoch's losses, over all processes; it is an error if one is not finite."""
        if self._unread:
            self._losses += self.world.mean(torch.stack(self._unread)).tolist()
            self._unread = []
        if not all(map(math.isfinite, self._losses)):
            raise UserError(f"the loss grew beyond all bounds in epoch {self.epoch + 1}: try a lower --lr")
        return self._losses

    def is_best(self, accuracy: float, validation_loss: float) -> bool:
        """Whether these weights are the ones to keep."""
        score = (accuracy, -validation_loss)
        better = score > self.best
        self.best = max(score, self.best)
        return better

    def end_epoch(self) -> None:
        """Save a checkpoint from which the next epoch starts."""
        self.epoch, self.batch, self._losses = self.epoch + 1, 0, []
        self.save()

    def save(self) -> None:
        """Replace the checkpoint; a run that diverged keeps its last sound one."""
        self.run.save(FILE, {
            "kind": "checkpoint", "identity": self.identity, "log_size": self.run.log_size(),
            "epoch": self.epoch, "batch": self.batch, "losses": self.read_losses(), "best": self.best,
            "random": self.world.gather(random_states()),
            **{name: part.state_dict() for name, part in self.parts.items()},
        })  # fmt: skip

    def restore(self) -> None:
        """Continue from the checkpoint; if the run ended before its first one, from the beginning."""
        path = self.run.folder / FILE
        if not path.exists():
            self.run.cut_log(0)
            return
        saved = read_tensors(path, "checkpoint")
        for name, now in self.identity.items():
            if saved["identity"].get(name) != now:
                raise UserError(f"{path} cannot be continued: {name} was {saved['identity'].get(name)}, is {now}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (KeyError, ValueError, RuntimeError) as error:  # what torch's load_state_dict methods raise
            raise UserError(f"{path} does not fit this run ({one_line(error)})") from error
        self.epoch, self.batch, self.best = saved["epoch"], saved["batch"], tuple(saved["best"])
        self._losses = saved["losses"]
        if self.world.rank < len(saved["random"]):  # more processes than before have no past to go on from
            set_random_states(saved["random"][self.world.rank])
        self.run.cut_log(saved["log_size"])


def random_states() -> dict[str, Any]:
    """The state of every random generator of this process, as values that a checkpoint can hold."""
    import numpy as np

    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - whoever uses the old generator, resumes
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned; GPUs that are no longer there are left out."""
    import numpy as np

    torch.set_rng_state(states["torch"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
