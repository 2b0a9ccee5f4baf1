"""Fits that are asked to end, by a shell or a scheduler: what they leave, and how they go on."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dam_lightning import DM, MTT, CondensedSet, Evaluation
from dam_lightning.callbacks import LastCheckpoint, SignalsBetweenSteps
from dam_lightning.cli import main
from dam_lightning.ending import end_if_asked, listen_to_sigterm
from dam_lightning.side_by_side import Networks
from tests.data.test_image_folder import TWO_DOMAINS, fill
from tests.runs import MOMENTS, OPTIONS, Kill
from tests.test_nodes import COMMAND, children, waited_for
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, tiny_data, tiny_trainer

SMALL: dict[str, Any] = {"backbone_args": SMALL_NETWORK}
JOB = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "condense",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
"""What a job of SLURM finds in its environment."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of SLURM, and the file that says with which arguments it was queued again."""
    requeued = tmp_path / "requeued.txt"
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {requeued}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return requeued


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_queued_again_by_slurm(slurm: Path, tmp_path: Path, name: str, moment: str) -> None:
    """Wherever the signal comes, the checkpoint is that of a whole step, and is found by itself."""
    method, options = OPTIONS[name]
    if name == "MTT":
        options = {**options, "experts": {"count": 2, "folder": str(tmp_path / "experts")}}
    data = tiny_data(tmp_path, steps_per_epoch=4)

    def fit(folder: str, steps: int, *callbacks: Kill) -> torch.Tensor:
        module = method(dam={"num_domains": 3}, backbone_args=SMALL_NETWORK, seed=1, **options)
        ours = [*callbacks, LastCheckpoint(), SignalsBetweenSteps()]
        trainer = tiny_trainer(tmp_path / folder, max_steps=steps, callbacks=ours)
        trainer.fit(module, datamodule=data)
        return module.images.detach()

    unbroken = fit("unbroken", 8)
    fit("queued", 5, Kill(2, moment, signal.SIGUSR1))
    assert slurm.read_text() == "requeue 7\n"
    saved = tmp_path / "queued" / "hpc_ckpt_1.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    # What the job did after the signal is not gone on with.
    (tmp_path / "queued" / "last.ckpt").unlink()
    assert torch.equal(fit("queued", 8), unbroken)


SEVERAL = "--trainer.devices 2 --trainer.strategy ddp"


@pytest.mark.parametrize(
    ("more", "job"),
    [("", {}), ("", JOB), (SEVERAL, {})],
    ids=["a shell", "SLURM", "two processes"],
)
def test_sigterm_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, job: dict[str, str]
) -> None:
    """Saved, told in words, exit status 143; and gone on with to what it would have become.

    Of several processes, of which the signal may find each anywhere in its step, all end.
    """
    fill(tmp_path / "own", TWO_DOMAINS)
    command = [sys.executable, "-m", "dam_lightning.cli", *shlex.split(f"{COMMAND} {more}")]
    command += ["--data.steps_per_epoch", "5", "--model.compile", "false"]
    command += ["--ckpt_path", "last"]
    at = command.index("--trainer.max_steps") + 1
    folder = tmp_path / "lightning_logs"
    begun = subprocess.Popen(
        [*command[:at], "1000000", *command[at + 1 :]],
        cwd=tmp_path,
        env={**os.environ, **job, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        text=True,
    )
    second: list[int] = []
    last = folder / "version_0" / "last.ckpt"
    try:
        assert waited_for(last.exists, 120)
        second = children(begun.pid) if more else []
        begun.send_signal(signal.SIGTERM)
        _, said = begun.communicate(timeout=60)
        assert waited_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in second), 60)
    finally:
        for pid in (begun.pid, *second):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert begun.returncode == 128 + signal.SIGTERM
    assert "There is no last.ckpt of a run in" in said
    assert "The run ended early: the same command with --ckpt_path" in said
    assert "Traceback" not in said
    steps = torch.load(last, weights_only=True)["global_step"] + 3
    rest = [*command[:at], str(steps), *command[at + 1 :]]
    # The same command, and one that begins anew.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    for arguments in (rest, rest[: rest.index("--ckpt_path")]):
        if more:
            subprocess.run(arguments, check=True, capture_output=True)
        else:
            main(arguments[3:])
    resumed, unbroken = (
        CondensedSet.load(folder / f"version_{version}" / "condensed.safetensors").images
        for version in (1, 2)
    )
    assert torch.load(folder / "version_1" / "last.ckpt", weights_only=True)["global_step"] == steps
    assert torch.equal(resumed, unbroken)


@pytest.mark.parametrize(
    ("to", "sent"), [("the first", signal.SIGINT), ("the second", signal.SIGTERM)]
)
def test_a_signal_to_one_of_two_processes(tmp_path: Path, to: str, sent: signal.Signals) -> None:
    """Both end, with the last checkpoint in place."""
    fill(tmp_path / "own", TWO_DOMAINS)
    command = COMMAND.replace("--trainer.max_steps 10", "--trainer.max_steps 1000000")
    more = f"{SEVERAL} --data.steps_per_epoch 5 --model.compile false"
    first = subprocess.Popen(
        [sys.executable, "-m", "dam_lightning.cli", *shlex.split(f"{command} {more}")],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    second: list[int] = []
    last = tmp_path / "lightning_logs" / "version_0" / "last.ckpt"
    try:
        assert waited_for(last.exists, 120)
        second = children(first.pid)
        os.kill(first.pid if to == "the first" else second[0], sent)
        _, said = first.communicate(timeout=60)
        assert waited_for(lambda: not Path(f"/proc/{second[0]}").exists(), 60)
    finally:
        for pid in (first.pid, *second):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert first.returncode == {signal.SIGTERM: 143, signal.SIGINT: 1}[sent]
    assert "The run ended early: the same command with --ckpt_path" in said
    assert torch.load(last, weights_only=True)["global_step"] >= 5


@pytest.mark.parametrize(
    ("subcommand", "networks", "more"),
    [("test", 2, ""), ("validate", 1, SEVERAL)],
    ids=["a test", "a validation by two processes"],
)
def test_sigterm_while_networks_are_trained(
    tmp_path: Path, subcommand: str, networks: int, more: str
) -> None:
    """There is nothing to save, and nothing to wait for; also where one waits for the other."""
    fill(tmp_path / "own", TWO_DOMAINS)
    network = "backbone_args: {width: 4, depth: 1}"
    recipe = f"{{num_networks: {networks}, epochs: 10000000, {network}}}"
    command = (
        f"{subcommand} --model Evaluation --model.condensed random --model.ipc 1 "
        f"--model.recipe '{recipe}' --data ImageFolder --data.root own --data.image_size 8 "
        f"--data.cache_dir cache --data.validation_share 0.2 --trainer.accelerator cpu {more}"
    )
    begun = subprocess.Popen(
        [sys.executable, "-m", "dam_lightning.cli", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    second: list[int] = []
    try:
        assert begun.stderr is not None
        assert any(f"Training {networks} networks" in line for line in begun.stderr)
        second = children(begun.pid) if more else []
        assert len(second) == bool(more)
        begun.send_signal(signal.SIGTERM)
        _, said = begun.communicate(timeout=30)
        assert waited_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in second), 30)
    finally:
        for pid in (begun.pid, *second):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert begun.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert "error" not in said


@pytest.mark.parametrize("what", ["a test", "experts"])
def test_a_training_ends_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nothing is raised within a step, where PyTorch may drop it."""
    ended: list[int] = []
    gradients = Networks.gradients

    def noted(self: Networks, *arguments: Any, **options: Any) -> Any:
        if len(ended) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        found = gradients(self, *arguments, **options)
        ended.append(len(ended))
        return found

    monkeypatch.setattr(Networks, "gradients", noted)
    experts = {"count": 2, "folder": str(tmp_path / "experts")}
    recipe = {**SMALL_RECIPE, "epochs": 9, "backbone_args": SMALL_NETWORK}
    trainer = tiny_trainer(tmp_path, max_steps=1, callbacks=[SignalsBetweenSteps()])
    before = signal.getsignal(signal.SIGTERM)
    run = partial(trainer.test, Evaluation("random", ipc=1, recipe=recipe))
    if what == "experts":
        run = partial(trainer.fit, MTT(seed=1, expert_epochs=5, experts=experts, **SMALL))
    with pytest.raises(SIGTERMException):
        run(datamodule=tiny_data(tmp_path))
    assert ended == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) is before


class InTest(Callback):
    """Sends SIGTERM before anybody but Lightning listens, or when a test is all but over."""

    def __init__(self, moment: str) -> None:
        self._moment = moment
        self.has_tested = False

    def _end(self, moment: str) -> None:
        if moment == self._moment:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_test_start(self, *_: Any) -> None:
        self._end("before")

    def on_test_batch_end(self, *_: Any) -> None:
        self.has_tested = True

    def on_test_epoch_end(self, *_: Any) -> None:
        self._end("after")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_sigterm_before_and_after_networks_are_trained(tmp_path: Path, moment: str) -> None:
    recipe = {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}
    callbacks = [in_test := InTest(moment), SignalsBetweenSteps()]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks)
    with pytest.raises(SIGTERMException):
        trainer.test(Evaluation("random", ipc=1, recipe=recipe), datamodule=tiny_data(tmp_path))
    assert in_test.has_tested == (moment == "after")


def test_an_end_that_was_asked_for_is_no_other_thread_s_and_none_that_comes_later() -> None:
    before = listen_to_sigterm()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        other = threading.Thread(target=end_if_asked)
        other.start()
        other.join()
        with pytest.raises(SIGTERMException):
            end_if_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        listen_to_sigterm()
        end_if_asked()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_while_experts_are_trained(tmp_path: Path) -> None:
    """Before the Trainer listens; those that are finished are kept."""
    fill(tmp_path / "own", TWO_DOMAINS)
    command = (
        COMMAND.replace("--model DM", "--model MTT").replace("--model.ipc 2", "")
        + " --model.experts.count 100000 --model.compile false"
    )
    begun = subprocess.Popen(
        [sys.executable, "-m", "dam_lightning.cli", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, **JOB},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert waited_for(lambda: len([*tmp_path.glob("cache/experts/*/*.safetensors")]) > 1, 120)
        # Not the end of it.
        begun.send_signal(signal.SIGUSR1)
        before = [*tmp_path.glob("cache/experts/*/*.safetensors")]
        assert waited_for(
            lambda: len([*tmp_path.glob("cache/experts/*/*.safetensors")]) > len(before), 60
        )
        begun.send_signal(signal.SIGTERM)
        _, said = begun.communicate(timeout=60)
    finally:
        begun.kill()
    assert begun.returncode == 128 + signal.SIGTERM
    assert "The run ended early: the same command trains the experts" in said
    assert "Traceback" not in said


def test_the_best_is_known_to_its_run_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "own", TWO_DOMAINS)
    with pytest.raises(SystemExit):
        main(shlex.split(f"{COMMAND} --ckpt_path best"))
    assert "error: what is best is known to the run alone" in capfd.readouterr().err


class InValidation(Callback):
    """Sends SIGTERM in the validation after the fourth step, and keeps what validations find."""

    def __init__(self, moment: str | None) -> None:
        self._moment = moment
        self.found: dict[int, torch.Tensor] = {}

    def _end(self, trainer: Trainer, moment: str) -> None:
        if moment == self._moment and trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self._end(trainer, "its start")

    def on_validation_batch_start(self, trainer: Trainer, module: Any, batch: Any, n: int) -> None:
        if n == 1:
            self._end(trainer, "its second batch")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.found[trainer.global_step] = trainer.callback_metrics["val/accuracy"]


@pytest.mark.parametrize("moment", ["its start", "its second batch"])
def test_sigterm_in_a_validation(tmp_path: Path, moment: str) -> None:
    """It is saved at once; Lightning passes over that validation when the run goes on."""
    data = tiny_data(tmp_path, steps_per_epoch=4, validation_share=0.5, test_batch_size=3)

    def fit(folder: str, moment: str | None) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        module = DM(dam={"num_domains": 3}, seed=1, recipe=SMALL_RECIPE, **SMALL)
        callbacks = [SignalsBetweenSteps(), validation := InValidation(moment), LastCheckpoint()]
        trainer = tiny_trainer(tmp_path / folder, max_steps=10, callbacks=callbacks)
        last = tmp_path / folder / "last.ckpt"
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
        return module.images.detach(), validation.found

    unbroken, expected = fit("unbroken", None)
    with pytest.raises(SystemExit):
        fit("ended", moment)
    saved = torch.load(tmp_path / "ended" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    images, found = fit("ended", None)
    assert torch.equal(images, unbroken)
    assert expected.pop(4) is not None
    assert found == expected
