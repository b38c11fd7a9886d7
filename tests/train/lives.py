"""Runs of train.py in processes of their own, which can be killed; and what their folders hold."""

import json
import multiprocessing
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import torch
from files import ROOT

# One process imports torch and all that a training needs; each life is a fork of it and starts at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["matplotlib.figure", "sklearn.datasets", "tqdm", "torchvision", "torchconv", "lives"])


def live(arguments, accident=None, log=None):
    """The target of a process: call train.py; `accident` is called before, to prepare what will happen.

    Pictures are left out, unless the accident happens while they are drawn.
    """
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    import train

    if log is not None:
        sys.stdout = sys.stderr = open(log, "a")  # noqa: SIM115 - until the process ends
    if accident is not die_while_a_picture_is_drawn:
        train.draw_all = lambda *_: None
    if accident is not None:
        accident()
    status = train.main(list(map(str, arguments)))
    sys.stdout.flush()
    os._exit(status)


def start_life(arguments, accident=None, log=None):
    process = context.Process(target=live, args=(arguments, accident, log))
    process.start()
    return process


def run_life(arguments, accident=None, log=None):
    """The exit status; -9 if it was killed."""
    process = start_life(arguments, accident, log)
    process.join()
    return process.exitcode


def live_together(rank, size, port, *life):
    """The target of one of several processes; the environment is what torchrun sets."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    live(*life)


def run_together(size, arguments, accidents=(), log=None):
    """The exit statuses of processes that train together; `accidents` are by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=live_together, args=(rank, size, port, arguments, dict(accidents).get(rank), log))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def die_in_step(step):
    """The accident: the process ends in the middle of the n-th step."""
    signal_in_step(signal.SIGKILL, step)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_half_a_checkpoint_is_written(number=3):
    """The accident: power off in the middle of the n-th file of tensors."""
    save, files = torch.save, iter(range(1, number))

    def half(contents, buffer):
        save(contents, buffer)
        if contents["kind"] == "checkpoint" and next(files, None) is None:
            buffer.truncate(buffer.tell() // 2)
            os.replace = lambda *_: die()  # half of the bytes are on the disk, and have not got their name
            os.fsync = lambda *_: die()

    torch.save = half


def die_before_the_new_name(number=3):
    """The accident: everything is written and flushed, but not renamed."""
    replace, files = os.replace, iter(range(1, number))

    def die_instead(source, target):
        if Path(target).name == "checkpoint.pt" and next(files, None) is None:
            die()
        replace(source, target)

    os.replace = die_instead


def die_after_the_new_name(number=3):
    """The accident: renamed, but nothing after that."""
    replace, files = os.replace, iter(range(1, number))

    def die_after(source, target):
        replace(source, target)
        if Path(target).name == "checkpoint.pt" and next(files, None) is None:
            die()

    os.replace = die_after


def die_between_metrics_and_checkpoint():
    """The accident: an epoch is logged, but the checkpoint from which the next one starts is not there yet."""
    save = torch.save

    def die_instead(contents, buffer):
        if contents["kind"] == "checkpoint" and contents["batch"] == 0:
            die()
        save(contents, buffer)

    torch.save = die_instead


def die_when_half_a_line_is_logged():
    """The accident: the metrics end within a line."""
    from torchconv.training.runs import Run

    def half(self, *events):
        if events and events[0]["event"] == "step":
            os.write(self._metrics.fileno(), b'{"event": "st')
            die()
        log(self, *events)

    log, Run.log = Run.log, half


def die_while_a_picture_is_drawn():
    """The accident: the training is over, but not everything is written."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda *_, **__: die()


def signal_in_step(number, step):
    """The accident: a signal comes in the middle of the n-th step."""
    original, steps = torch.optim.SGD.step, iter(range(1, step))

    def step_with_signal(self, *arguments):
        if next(steps, None) is None:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    torch.optim.SGD.step = step_with_signal


def signal_in_evaluation(number, evaluation):
    """The accident: a signal comes while images that are not trained on are looked at."""
    from torchconv.training.batches import Batches

    original, evaluations = Batches.in_order, iter(range(1, evaluation))

    def in_order(self):
        if next(evaluations, None) is None:
            os.kill(os.getpid(), number)
        return original(self)

    Batches.in_order = in_order


def events(folder, kind):
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [event for event in found if event["event"] == kind]


def losses(folder):
    return [event["loss"] for event in events(folder, "step")]


def weights(folder, file="checkpoint.pt"):
    """The final weights of a run, and the best."""
    return torch.load(folder / file, weights_only=True)["model" if file == "checkpoint.pt" else "state_dict"]


def same(a, b):
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
