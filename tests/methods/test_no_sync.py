"""A step never waits for the device: nothing that it computed is read by the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from dam_lightning import DM, Condenser
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
    """Counts within each training step, from the draws being there to the images being updated."""

    def __init__(self) -> None:
        self.counter = SyncCounter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.counter.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.counter.__exit__(None, None, None)


@pytest.mark.parametrize("dam", [None, {"num_domains": 3}], ids=["plain", "dam"])
@pytest.mark.parametrize("method", [DM])
def test_a_step(tmp_path: Path, method: Any, dam: Any) -> None:
    """Augmentation, networks, gradients, what is logged, the guard and the update."""
    counting = Counting()
    module: Condenser = method(ipc=2, dam=dam, backbone_args=SMALL_NETWORK, max_images=4)
    trainer = tiny_trainer(tmp_path, max_steps=3, callbacks=[counting])
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    assert not counting.counter.counts
