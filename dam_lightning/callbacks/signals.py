"""Signals that end a job, answered between two steps."""

import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dam_lightning.ending import ask_to_end, end_if_asked, listen_to_sigterm

__all__ = ["SignalsBetweenSteps"]


class SignalsBetweenSteps(Callback):
    """Puts off what Lightning does on SIGTERM, and on SLURM's SIGUSR1, to the end of the step.

    Lightning answers at once. On SIGUSR1 it saves a checkpoint, and has the job queued again:
    images may have been updated that the step has not been counted for, and a run that goes on from
    there is another one. On SIGTERM it tells the other processes, which may be waiting for this
    one's gradient, and then neither goes on; nor do they when one alone gets Ctrl+C. Here all
    processes agree after the step. (Of a single process Ctrl+C is answered at once, and so is the
    second one of several.) SIGUSR1 is left alone outside SLURM.

    A test has nothing to save: SIGTERM ends it after a step of its networks (the first of which may
    be compiled for up to a minute) or a batch of test images, where Lightning would wait until all
    is done. So it does a validation, which changes no image; within a fit of several processes that
    is finished first, since all must agree.
    """

    def __init__(self) -> None:
        self._requeue: Callable[[int, Any], Any] | None = None
        self._asked: set[int] = set()
        self._listens = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handlers, which it takes back itself after the fit."""
        self._requeue, self._asked, self._listens = None, set(), False
        if threading.current_thread() is not threading.main_thread():
            # Lightning does not listen there either.
            return
        self._listens = True
        signal.signal(signal.SIGTERM, self._note)
        if trainer.world_size > 1:
            signal.signal(signal.SIGINT, self._note)
        if SLURMEnvironment.detect() and callable(signal.getsignal(signal.SIGUSR1)):
            self._requeue = signal.getsignal(signal.SIGUSR1)  # type: ignore[assignment]
            signal.signal(signal.SIGUSR1, self._note)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen before the module trains its networks."""
        self._end_on_sigterm(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._end_on_sigterm(trainer)
        elif self._listens and trainer.world_size == 1 and not trainer.sanity_checking:
            if signal.SIGTERM in self._asked:
                raise SIGTERMException
            self._end_on_sigterm(trainer)

    def on_test_batch_end(self, *_: Any) -> None:
        """End where that was asked for."""
        end_if_asked()

    def on_test_end(self, *_: Any) -> None:
        """Likewise, when all is done."""
        end_if_asked()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Likewise."""
        end_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise; in a fit listen as before."""
        end_if_asked()
        if trainer.state.fn == TrainerFn.FITTING and self._listens:
            signal.signal(signal.SIGTERM, self._note)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Of a process that was asked to end, what fails then is no news.

        Another process, which it waits for, may have ended before it.
        """
        if trainer.received_sigterm:
            ask_to_end()

    def _end_on_sigterm(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        launcher = trainer.strategy.launcher
        # Processes that this one has started are told as well.
        tell = None if launcher is None else partial(launcher.kill, signal.SIGTERM)
        listen_to_sigterm(tell)
        # Lightning has listened until now.
        if trainer.received_sigterm:
            ask_to_end()

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in self._asked:
            raise KeyboardInterrupt
        self._asked.add(number)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Do what was asked for, in all processes.

        Raises:
            SIGTERMException: the run is to end, and has steps left.
            KeyboardInterrupt: the same by Ctrl+C, of several processes.
        """
        if not self._listens:
            return
        # One agreement for all signals: with several processes the host waits for it.
        if not trainer.strategy.reduce_boolean_decision(bool(self._asked), all=False):
            return
        if self._requeue is not None and self._any(trainer, signal.SIGUSR1):
            self._asked.discard(signal.SIGUSR1)
            self._requeue(signal.SIGUSR1, None)
        if trainer.global_step == trainer.max_steps:
            return
        if trainer.world_size > 1 and self._any(trainer, signal.SIGINT):
            raise KeyboardInterrupt
        if self._any(trainer, signal.SIGTERM):
            raise SIGTERMException

    def _any(self, trainer: Trainer, number: int) -> bool:
        """Whether a process was sent the signal."""
        return trainer.strategy.reduce_boolean_decision(number in self._asked, all=False)
