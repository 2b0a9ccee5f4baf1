"""A step never waits for the device: nothing that it computed is read by the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from dam_lightning import DC, DM, MTT, Condenser
from dam_lightning.functional import DSA
from tests.no_sync import SyncCounter
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


def test_the_counter_sees_what_it_is_for() -> None:
    numbers = torch.arange(3.0)
    with SyncCounter() as counter:
        float(numbers.sum())
        bool(numbers.max() > 1)
        numbers[numbers > 1]
        torch.equal(numbers, numbers)
        numbers * 2
    assert sum(counter.counts.values()) == 4


class Counting(Callback):
    """Counts within training steps, from the draws being there to the images being updated.

    Not in the first, which makes what later steps use again.
    """

    def __init__(self) -> None:
        self.counter = SyncCounter()

    def on_train_batch_start(self, *arguments: Any) -> None:
        if arguments[-1] > 0:
            self.counter.__enter__()

    def on_train_batch_end(self, *arguments: Any) -> None:
        if arguments[-1] > 0:
            self.counter.__exit__(None, None, None)


METHODS: dict[str, tuple[type[Condenser], dict[str, Any]]] = {
    "DM": (DM, {}),
    "DC": (DC, {"outer_loop": 2, "inner_loop": 2, "batch_train": 3, "augmentation": DSA}),
    "MTT": (MTT, {"student_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "batch_syn": 3}),
    "MTT, adjoint": (
        MTT,
        {"student_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "adjoint": True},
    ),
}


@pytest.mark.parametrize("dam", [None, {"num_domains": 3}], ids=["plain", "dam"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step(tmp_path: Path, name: str, dam: Any) -> None:
    """Augmentation, networks and their training, gradients, logs, the guard and the update."""
    method, options = METHODS[name]
    if method is MTT:
        options = {**options, "experts": {"count": 2, "folder": str(tmp_path / "experts")}}
    counting = Counting()
    module = method(ipc=2, dam=dam, backbone_args=SMALL_NETWORK, max_images=4, **options)
    trainer = tiny_trainer(tmp_path, max_steps=3, callbacks=[counting])
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    assert not counting.counter.counts
