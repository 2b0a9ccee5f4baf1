"""A full disk, and a process that is killed while it writes: what was there before is whole."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dam_lightning import DM, CondensedSet
from dam_lightning.callbacks import LastCheckpoint
from dam_lightning.checkpoint_io import CheckedCheckpointIO
from dam_lightning.methods.expert_store import ExpertStore
from tests.runs import in_a_process
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk with so little left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def condensed(value: float) -> CondensedSet:
    metadata = {"class_names": ["ant"], "mean": [0.0], "std": [1.0]}
    return CondensedSet(torch.full((1, 1, 64, 64), value), torch.zeros(1).long(), metadata)


def a_set(path: Path, value: float) -> None:
    condensed(value).save(path)


def an_expert(path: Path, value: float) -> None:
    store = ExpertStore(path.parent, {}, 4096)
    store.save(int(path.stem[-4:]), torch.full((2, 4096), value))


def a_checkpoint(path: Path, value: float) -> None:
    inner = TorchCheckpointIO()
    CheckedCheckpointIO(inner).save_checkpoint({"state_dict": torch.full((4096,), value)}, path)


WRITERS: dict[str, Callable[[Path, float], None]] = {
    "last.ckpt": a_checkpoint,
    "condensed.safetensors": a_set,
    "expert_0003.safetensors": an_expert,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, 1.0)
    before = contents(tmp_path)
    with full_after(4096), pytest.raises(OSError, match=rf"cannot write .*{name}: .*make room"):
        WRITERS[name](path, 2.0)
    assert contents(tmp_path) == before
    WRITERS[name](path, 2.0)
    assert contents(tmp_path) != before


def write_and_be_killed(name: str, path: Path) -> None:
    """Killed when all is written, and nothing in its place yet."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = kill  # type: ignore[method-assign, assignment]
    WRITERS[name](path, 2.0)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_nobody_finished(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, 1.0)
    before = contents(tmp_path)
    assert in_a_process(write_and_be_killed, name, path) == -signal.SIGKILL
    after = contents(tmp_path)
    assert {n: c for n, c in after.items() if not n.startswith(".")} == before
    # What it left is not taken for anything.
    assert len(after) == len(before) + 1


def test_a_checkpoint(tmp_path: Path) -> None:
    """The last one is kept, and gone on from when there is room again."""
    folder, data = tmp_path / "run", tiny_data(tmp_path, steps_per_epoch=2)

    def fit(steps: int, **options: Any) -> DM:
        module = DM(backbone_args=SMALL_NETWORK, seed=0)
        trainer = tiny_trainer(folder, max_steps=steps, callbacks=[LastCheckpoint()])
        trainer.fit(module, datamodule=data, **options)
        return module

    unbroken = fit(6)
    fit(2)
    before = contents(folder)
    with (
        full_after(4096),
        pytest.raises(OSError, match=r"cannot write .*last\.ckpt: File too large"),
    ):
        fit(4, ckpt_path=folder / "last.ckpt")
    assert contents(folder) == before
    assert torch.equal(fit(6, ckpt_path=folder / "last.ckpt").images, unbroken.images)
