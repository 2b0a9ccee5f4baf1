"""A killed run goes on from its last checkpoint as if nothing had happened."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs import MOMENTS, OPTIONS, Kill, Run

VARIANTS = [(name, dam) for name in OPTIONS for dam in (False, True)]
REPETITIONS = [(*VARIANTS[n % len(VARIANTS)], n) for n in range(20)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Run]:
    """Runs that nobody kills, each made when first asked for."""
    root = tmp_path_factory.mktemp("unbroken")

    def finished(name: str, dam: bool) -> Run:
        run = Run(name, dam, root / f"{name}{dam}", root / "experts")
        if not run.folder.exists():
            run()
        return run

    return finished


@pytest.mark.parametrize(("name", "dam", "repetition"), REPETITIONS)
def test_killed_and_gone_on_with(
    unbroken: Callable[[str, bool], Run], tmp_path: Path, name: str, dam: bool, repetition: int
) -> None:
    """Bit for bit: images, masks, step sizes and momentum."""
    expected = unbroken(name, dam)
    run = replace(expected, folder=tmp_path)
    draws = np.random.default_rng(repetition)
    kill = Kill(int(draws.integers(run.steps)), str(draws.choice(MOMENTS)))
    assert replace(run, kill=kill).exit_code() == -signal.SIGKILL
    assert not (tmp_path / "condensed.safetensors").exists()
    run()
    found, wanted = run.state(), expected.state()
    assert found.keys() == wanted.keys()
    assert not [key for key in wanted if not torch.equal(found[key], wanted[key])]
    files, usual = ({path.name for path in r.folder.iterdir()} for r in (run, expected))
    assert files == usual


def test_killed_before_the_condensed_set_was_written(
    unbroken: Callable[[str, bool], Run], tmp_path: Path
) -> None:
    """The last checkpoint is there before, and then nothing is left to learn."""
    expected = unbroken("DM", True)
    run = replace(expected, folder=tmp_path)
    run()
    (tmp_path / "condensed.safetensors").unlink()
    run()
    assert torch.equal(run.state()["condensed"], expected.state()["condensed"])


@pytest.mark.parametrize(("name", "dam"), VARIANTS)
def test_asked_to_end_and_gone_on_with(
    unbroken: Callable[[str, bool], Run], tmp_path: Path, name: str, dam: bool
) -> None:
    """SIGTERM in a step: it is saved at its end, which no epoch's is."""
    expected = unbroken(name, dam)
    run = replace(expected, folder=tmp_path)
    kill = Kill(4, "on_before_optimizer_step", signal.SIGTERM)
    assert replace(run, kill=kill).exit_code() == 0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    run()
    found, wanted = run.state(), expected.state()
    assert not [key for key in wanted if not torch.equal(found[key], wanted[key])]
