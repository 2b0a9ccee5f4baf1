"""Several processes learn what one learns, and may take over from one another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dam_lightning import Condenser
from tests.runs import OPTIONS, Run, Spoil
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the whole."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def compare(ours: Run, theirs: Run) -> None:
    """Images and masks, and that they were learned."""
    found, expected = ours.state(), theirs.state()
    begun = ours.module()
    begun._build(len(found["labels"]) // begun.ipc, tuple(found["images"].shape[1:]))
    for name in ("images", "dam.logits"):
        assert difference(found[name], expected[name]) < 1e-5
        assert difference(begun.state_dict()[name], expected[name]) > 1e-3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def of_one(root: Path, name: str) -> Run:
    """Ten steps of one process, once for all tests."""
    # In bfloat16 rounding depends on which images share a pass, and in float32 it tips over what
    # has kinks.
    options: tuple[tuple[str, Any], ...] = (
        ("precision", "float32"),
        ("backbone_args", {**SMALL_NETWORK, "activation": "swish"}),
    )
    if name == "MTT":
        # Of each kind: four units of work. By the default step size rounding doubles in a step.
        options += (("experts_per_step", 2), ("lr_images", 100.0))
    run = Run(name, True, root / name, root / "experts", steps=10, options=options)
    if not run.folder.exists():
        run()
    return run


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_processes_equal_one(root: Path, tmp_path: Path, name: str, processes: int) -> None:
    expected = of_one(root, name)
    run = replace(expected, folder=tmp_path, processes=processes)
    run()
    compare(run, expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_processes_equal_one_but_for_rounding(tmp_path: Path, name: str) -> None:
    """By the defaults of the methods, in float64, where it is seen apart from anything else."""
    options: tuple[tuple[str, Any], ...] = (("backbone_args", SMALL_NETWORK),)
    alone = Run(
        name, True, tmp_path / "1", tmp_path / "e", 10, options=options, precision="64-true"
    )
    alone()
    together = replace(alone, folder=tmp_path / "2", processes=2)
    together()
    found, expected = together.state(), alone.state()
    for key in ("images", "dam.logits"):
        assert expected[key].dtype == torch.float64
        assert difference(found[key], expected[key]) < 1e-9


@pytest.mark.parametrize("name", OPTIONS)
def test_one_process_goes_on_with_what_two_began(root: Path, tmp_path: Path, name: str) -> None:
    expected = of_one(root, name)
    run = replace(expected, folder=tmp_path)
    # In the middle of an outer loop of DC.
    run(steps=5, processes=2)
    run()
    compare(run, expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_loss_that_is_not_a_number_in_one_process(root: Path, tmp_path: Path, name: str) -> None:
    """All leave out that step, as one process does, and go on alike."""
    usual = of_one(root, name)
    alone = replace(usual, folder=tmp_path / "1", kill=Spoil(step=4, rank=0))
    together = replace(usual, folder=tmp_path / "2", processes=2, kill=Spoil(step=4, rank=1))
    alone()
    together()
    compare(together, alone)
    assert difference(together.state()["images"], usual.state()["images"]) > 1e-4


@pytest.mark.parametrize(
    ("name", "units", "remedy"),
    [
        ("DM", 6, "use fewer (--trainer.devices"),
        ("DC", 6, "use fewer (--trainer.devices"),
        ("MTT", 2, "raise experts_per_step, or use fewer"),
    ],
)
def test_processes_without_work_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, units: int, remedy: str
) -> None:
    """Three classes and three pseudo-domains; of MTT an expert of each kind."""
    run = Run(name, True, tmp_path, tmp_path / "experts")
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.methods.base.rank_zero_warn", said.append)
    for processes in (units, units + 1):
        monkeypatch.setattr(Condenser, "_rank_and_world_size", (0, processes))
        module = run.module()
        module.trainer = tiny_trainer(tmp_path, max_steps=1)
        module.trainer.datamodule = tiny_data(tmp_path)  # type: ignore[attr-defined]
        monkeypatch.setattr(module.trainer.state, "fn", "fit")
        Condenser.setup(module, "fit")
    assert [line.partition(": ")[0] for line in said] == [
        f"A step has work for {units} of {units + 1} processes"
    ]
    assert remedy in said[0]
