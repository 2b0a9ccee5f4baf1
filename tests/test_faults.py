"""A full disk, and a process that is killed while it writes: what was there before is whole."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from dam_lightning import DM, MTT, CondensedSet, ImageFolder
from dam_lightning.callbacks import LastCheckpoint
from dam_lightning.checkpoint_io import CheckedCheckpointIO
from dam_lightning.files import written_beside
from dam_lightning.methods.expert_store import ExpertStore
from tests.data.test_image_folder import TWO_DOMAINS, fill
from tests.runs import Run, in_a_process
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


def test_a_link_stays_one_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "real.txt")
    with written_beside(tmp_path / "link.txt") as beside:
        beside.write_text("whole")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "real.txt").read_text() == "whole"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with written_beside(tmp_path / "pipe") as beside:
        beside.write_text("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


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
    # What it left is not taken for anything: Lightning goes by parts of names.
    (left,) = after.keys() - before.keys()
    assert path.stem not in left


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


class Damage(Callback):
    """Writes into files while a run is using them, in its fourth step."""

    def __init__(self, files: list[Path]) -> None:
        assert files
        self._files = files

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            for file in self._files:
                file.write_bytes(file.read_bytes()[:-40])
                os.utime(file, ns=(0, 0))


@pytest.mark.parametrize("method", [DM, MTT])
def test_files_that_are_damaged_in_use(tmp_path: Path, method: type[DM | MTT]) -> None:
    """The cache and experts: the run stops and says so, and what it learned until then is kept."""
    fill(tmp_path / "own", TWO_DOMAINS)
    cache = str(tmp_path / "cache")
    data = {"root": str(tmp_path / "own"), "image_size": 8, "batch_real": 2, "steps_per_epoch": 2}
    short = {"student_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "experts": {"count": 2}}

    def fit(folder: Path, *callbacks: Callback, **options: Any) -> DM | MTT:
        module = method(
            ipc=1,
            backbone_args={"width": 8, "depth": 1},
            seed=0,
            **(short if method is MTT else {}),
        )
        trainer = tiny_trainer(folder, max_steps=6, callbacks=[LastCheckpoint(), *callbacks])
        trainer.fit(module, datamodule=ImageFolder(cache_dir=cache, seed=0, **data), **options)
        return module

    unbroken = fit(tmp_path / "unbroken")
    pattern = "*/train.images" if method is DM else "**/expert_*.safetensors"
    files = list((tmp_path / "cache").glob(pattern))
    remedy = (
        "is no expert, or is damaged" if method is MTT else "changed while it was in use: start"
    )
    with pytest.raises((OSError, ValueError), match=remedy):
        fit(tmp_path / "run", Damage(files))
    last = tmp_path / "run" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] in (2, 3)
    if method is MTT:
        for file in files:
            file.unlink()
    assert torch.equal(fit(tmp_path / "run", ckpt_path=last).images, unbroken.images)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """At the same time, with the same files: all are whole, and each is that of one run."""
    runs = [
        Run("DM", False, tmp_path / str(seed), tmp_path, steps=20, options=(("seed", seed),))
        for seed in range(2)
    ]
    for run in runs:
        run()
    alone = [run.state() for run in runs]
    together = [replace(run, folder=tmp_path / "both") for run in runs]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(Run.exit_code, together)) == [0, 0]
    found = together[0].state()
    for name in ("images", "condensed"):
        assert any(torch.equal(found[name], state[name]) for state in alone)
    usual, both = ({path.name for path in run.folder.iterdir()} for run in (runs[0], together[0]))
    assert usual == both
