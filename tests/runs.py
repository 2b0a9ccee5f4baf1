"""Tiny fits in processes of their own, which may be killed, or be several.

They are forked from one with everything imported, each with a single thread, so that a fit takes a
second.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from dam_lightning import DC, DM, MTT, CondensedSet, Condenser
from dam_lightning.callbacks import LastCheckpoint
from tests.tiny import SMALL_NETWORK, LeaveTogether, tiny_data, tiny_trainer

OPTIONS: dict[str, tuple[type[Condenser], dict[str, Any]]] = {
    "DM": (DM, {}),
    # Three updates of an outer loop, and two of an epoch: checkpoints come anywhere in it.
    "DC": (DC, {"outer_loop": 3, "inner_loop": 2, "batch_train": 3}),
    "MTT": (MTT, {"student_steps": 2, "expert_epochs": 1, "max_start_epoch": 2}),
}

MOMENTS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


class Kill(Callback):
    """Sends a signal, as ``kill -9``, at a moment of a step.

    Args:
        step: which, from 0.
        moment: the name of a hook of callbacks.
        sent: the signal.
    """

    def __init__(self, step: int, moment: str, sent: signal.Signals = signal.SIGKILL) -> None:
        self._when = (step, moment)
        self._sent = sent

    def _kill(self, step: int, moment: str) -> None:
        if (step, moment) == self._when:
            os.kill(os.getpid(), self._sent)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._kill(trainer.global_step, "on_train_batch_start")

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._kill(trainer.global_step, "on_before_optimizer_step")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # The step is counted already.
        self._kill(trainer.global_step - 1, "on_train_batch_end")


class Spoil(Callback):
    """The losses of one process are not a number in one step.

    Args:
        step: which, from 0.
        rank: of the process.
    """

    def __init__(self, step: int, rank: int) -> None:
        self._step = step
        self._rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.grouping_loss = (
            partial(_not_a_number, type(pl_module).grouping_loss, pl_module)
            if (trainer.global_step, trainer.global_rank) == (self._step, self._rank)
            else partial(type(pl_module).grouping_loss, pl_module)
        )


def _not_a_number(loss: Callable[..., Tensor], *arguments: Any) -> Tensor:
    # The gradient stays as it is: of that all processes have the same.
    return loss(*arguments) + torch.nan


@dataclass(frozen=True)
class Run:
    """A fit of 33 images in 16x16, in epochs of two steps with a checkpoint after each.

    Attributes:
        name: of the method.
        dam: with DAM.
        folder: where it leaves its files; what is there is gone on with.
        experts: folder of MTT's.
        steps: after which it ends.
        processes: that share the work.
        kill: when it is killed, or spoilt, if ever.
        options: further ones of the method.
        precision: of the Trainer.
    """

    name: str
    dam: bool
    folder: Path
    experts: Path
    steps: int = 8
    processes: int = 1
    kill: Kill | Spoil | None = None
    options: tuple[tuple[str, Any], ...] = ()
    precision: Any = "32-true"

    def module(self) -> Condenser:
        """The method, with its options."""
        method, options = OPTIONS[self.name]
        if method is MTT:
            options = {**options, "experts": {"count": 2, "folder": str(self.experts)}}
        return method(
            ipc=2,
            dam={"num_domains": 3} if self.dam else None,
            **{"backbone_args": SMALL_NETWORK, "seed": 1, **options, **dict(self.options)},
        )

    def fit(self) -> None:
        """Begin, or go on."""
        torch.set_num_threads(1)
        callbacks: list[Callback] = [LastCheckpoint(), *([self.kill] if self.kill else [])]
        several: dict[str, Any] = {}
        if self.processes > 1:
            several = {"devices": self.processes, "strategy": "ddp_fork"}
            callbacks.append(LeaveTogether())
        trainer = tiny_trainer(
            self.folder,
            max_steps=self.steps,
            callbacks=callbacks,
            precision=self.precision,
            **several,
        )
        data = tiny_data(self.folder, steps_per_epoch=2)
        last = self.folder / "last.ckpt"
        trainer.fit(self.module(), datamodule=data, ckpt_path=last if last.exists() else None)

    def exit_code(self) -> int:
        """Run it to its end; whatever it raises is raised here."""
        self.folder.mkdir(exist_ok=True)
        code = in_a_process(_fit, self)
        failed = self.folder / "failed.txt"
        assert not failed.exists(), failed.read_text()
        return code

    def __call__(self, **changed: Any) -> None:
        """Run it, with some attributes changed, and see it succeed."""
        assert replace(self, **changed).exit_code() == 0

    def state(self) -> dict[str, Tensor]:
        """All that was learned, and the optimiser's momentum."""
        checkpoint = torch.load(self.folder / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == self.steps
        (optimizer,) = checkpoint["optimizer_states"]
        momenta = {f"momentum {n}": s["momentum_buffer"] for n, s in optimizer["state"].items()}
        images = CondensedSet.load(self.folder / "condensed.safetensors").images
        return {**checkpoint["state_dict"], **momenta, "condensed": images}


def _fit(run: Run) -> None:
    try:
        run.fit()
    except SystemExit:
        # After SIGTERM.
        raise
    except BaseException:
        (run.folder / "failed.txt").write_text(traceback.format_exc())
        raise


def in_a_process(function: Callable[..., None], *arguments: Any) -> int:
    """Run a function to its end in a process of its own, and tell the exit code of that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("it took more than two minutes")
    return process.exitcode
