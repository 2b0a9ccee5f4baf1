"""The resident data module, on random images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from dam_lightning.data import GroupedBatch, ResidentDataModule, Split, pseudo_labels, random_images
from dam_lightning.data import base as base_module
from dam_lightning.data.resident import read_tensors
from tests.reference.fourier import pseudo_domains

NUM_TRAIN, NUM_TEST, RATIO = 90, 25, 0.2


class Toy(ResidentDataModule):
    """Random images of three classes."""

    class_names = ("ant", "bee", "cat")
    domain_names = ("here", "there")
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.25, 0.3)

    def __init__(self, number: int = NUM_TRAIN, **options: Any) -> None:
        super().__init__(**options)
        self.number = number
        self.loaded = 0

    def load_splits(self) -> Mapping[str, Split]:
        self.loaded += 1
        generator = np.random.default_rng(4)
        splits = {}
        for name, number in (("train", self.number), ("test", NUM_TEST)):
            # Different brightness, so that the amplitudes differ as those of real images do.
            top = generator.integers(2, 257, (number, 1, 1, 1))
            pixels = (generator.random((number, 3, 12, 16)) * top).astype(np.uint8)
            labels = torch.arange(number) % 3
            paths = [f"{name}/{position}" for position in range(number)]
            splits[name] = Split(torch.from_numpy(pixels), labels, torch.arange(number) % 2, paths)
        return splits


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"batch_real": 8, "fft_ratio": RATIO, "cache_dir": str(tmp_path / "cache")}


def ready(**options: Any) -> Toy:
    data = Toy(**options)
    data.prepare_data()
    data.setup()
    return data


class Recorder(LightningModule):
    """Notes the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[int] = []
        self.indices: list[Tensor] = []
        self.tested: list[Any] = []

    def training_step(self, batch: GroupedBatch) -> Tensor:
        assert batch.step == self.global_step
        self.steps.append(batch.step)
        self.indices.append(batch.classes.indices)
        return self.weight * batch.classes.images([0]).mean()

    def test_step(self, batch: Any) -> None:
        self.tested.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(steps: int, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_after_setup_it_describes_itself(options: dict[str, Any]) -> None:
    data = ready(**options)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.domain_names == ["here", "there"]
    assert data.num_classes == 3
    assert data.image_shape == (3, 12, 16)
    assert data.mean == (0.5, 0.4, 0.3)
    assert data.std == (0.2, 0.25, 0.3)
    assert len(data.fingerprint) == 32
    assert data.fingerprint == ready(**options).fingerprint
    assert (len(data.train), len(data.test)) == (NUM_TRAIN, NUM_TEST)
    for stage in ("fit", "test", None):
        data.setup(stage)
    assert data.loaded == 1


@pytest.mark.parametrize("name", ["batch_real", "steps_per_epoch", "test_batch_size"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        Toy(**{name: 0})


def test_the_seed_is_the_run_s_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert Toy().seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")  # restored when the test ends
    seed_everything(17)
    assert Toy().seed == 17
    assert Toy(seed=3).seed == 3


def test_a_resumed_run_keeps_its_seed_unless_another_is_given() -> None:
    state = Toy(seed=11).state_dict()
    left_open, given = Toy(), Toy(seed=3)
    left_open.load_state_dict(state)
    given.load_state_dict(state)
    assert (left_open.seed, given.seed) == (11, 3)


def test_batches_are_a_function_of_seed_and_step(options: dict[str, Any]) -> None:
    data, again, other = (
        ready(seed=1, **options),
        ready(seed=1, **options),
        ready(seed=2, **options),
    )
    for module in (data, again, other):
        module.setup_domains(4)
    again.grouped_batch(3)
    first, second, third = (module.grouped_batch(7) for module in (data, again, other))
    for name, labels, groups in (
        ("classes", data.train.labels, 3),
        ("domains", data.pseudo_domains, 4),
    ):
        drawn = getattr(first, name)
        assert torch.equal(drawn.indices, getattr(second, name).indices)
        assert not torch.equal(drawn.indices, getattr(third, name).indices)
        assert labels is not None
        assert torch.equal(labels[drawn.indices], torch.arange(groups)[:, None].expand(-1, 8))
    assert not torch.equal(first.classes.indices, data.grouped_batch(8).classes.indices)


def test_random_images_are_drawn_class_by_class(options: dict[str, Any]) -> None:
    data = ready(**options)
    images = random_images(data, 4, 3, "s", 2)
    everything = data.normalisation(data.train.images)
    same = (images[:, None] == everything).flatten(2).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    assert same.sum(dim=0).max() == 1  # none twice
    assert data.train.labels[same.int().argmax(dim=1)].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(random_images(data, 4, 3, "s", 2), images)
    assert not torch.equal(random_images(data, 4, 3, "s", 3), images)
    with pytest.raises(ValueError, match="class 'ant' has 30 training images, but 31"):
        random_images(data, 31, 3, "s")


def test_there_are_no_domains_until_they_are_set_up(options: dict[str, Any]) -> None:
    data = ready(**options)
    loader = data.train_dataloader()
    assert data.pseudo_domains is None
    assert next(iter(loader)).domains is None
    data.setup_domains(2)
    batch = next(iter(loader))
    assert batch.domains is not None
    assert len(batch.domains.counts) == 2
    assert batch.domains.images(range(2)).shape == (2, 8, 3, 12, 16)


@pytest.mark.parametrize("num_domains", [1, 4, 7, NUM_TRAIN])
def test_pseudo_domains_equal_a_computation_from_scratch(
    options: dict[str, Any], num_domains: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_labels, "_CHUNK", 32)  # several chunks, the last one smaller
    data = ready(**options)
    data.setup_domains(num_domains)
    assert data.pseudo_domains is not None
    assert data.pseudo_domains.dtype == torch.int64
    scores, expected = pseudo_domains(data.train.images.numpy(), num_domains, RATIO)
    assert data.pseudo_domains.tolist() == expected
    (file,) = Path(options["cache_dir"]).iterdir()
    cached = read_tensors(file)
    assert cached is not None
    np.testing.assert_allclose(cached[0]["amplitudes"].numpy(), scores, rtol=1e-12)


def test_another_number_of_domains_only_cuts_anew(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ready(**options)
    data.setup_domains(4)
    computed: list[float] = []
    amplitude = pseudo_labels.low_frequency_amplitude

    def spy(images: Tensor, ratio: float, *more: Any) -> Tensor:
        computed.append(ratio)
        return amplitude(images, ratio, *more)

    monkeypatch.setattr(pseudo_labels, "low_frequency_amplitude", spy)
    assert data.pseudo_domains is not None
    first = data.pseudo_domains.clone()
    data.setup_domains(3)
    assert data.pseudo_domains.max() == 2
    data.setup_domains(4)
    assert torch.equal(data.pseudo_domains, first)
    again = ready(**options)  # finds the amplitudes on disk
    again.setup_domains(4)
    assert torch.equal(again.pseudo_domains, first)
    assert computed == []
    wider = ready(**{**options, "fft_ratio": 0.3})
    wider.setup_domains(4)
    fewer = ready(number=60, **options)
    fewer.setup_domains(4)
    assert computed == [0.3, RATIO]


def test_damaged_amplitudes_are_computed_again(options: dict[str, Any]) -> None:
    first = ready(**options)
    first.setup_domains(4)
    (file,) = Path(options["cache_dir"]).iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    second = ready(**options)
    second.setup_domains(4)
    assert torch.equal(first.pseudo_domains, second.pseudo_domains)


@pytest.mark.parametrize("num_domains", [NUM_TRAIN + 1, 0])
def test_a_number_of_domains_that_cannot_be_is_refused(
    options: dict[str, Any], num_domains: int
) -> None:
    data = ready(**options)
    with pytest.raises(ValueError, match=f"{num_domains} pseudo-domains cannot be made of 90"):
        data.setup_domains(num_domains)


def test_without_a_trainer_the_loader_goes_on_counting(options: dict[str, Any]) -> None:
    loader = ready(steps_per_epoch=3, **options).train_dataloader()
    assert len(loader) == 3
    assert [batch.step for batch in loader] == [0, 1, 2]
    assert [batch.step for batch in loader] == [3, 4, 5]


@pytest.mark.filterwarnings("error:.*not resumable.*")
@pytest.mark.parametrize("stop", [5, 10, 14])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(
    options: dict[str, Any], tmp_path: Path, stop: int
) -> None:
    options["steps_per_epoch"] = 10
    unbroken = Recorder()
    trainer(23).fit(unbroken, datamodule=Toy(seed=9, **options))
    assert unbroken.steps == list(range(23))

    first, second = Recorder(), Recorder()
    stopped = trainer(stop)
    stopped.fit(first, datamodule=Toy(seed=9, **options))
    stopped.save_checkpoint(tmp_path / "stop.ckpt")
    # No seed is given here: it is in the checkpoint.
    trainer(23).fit(second, datamodule=Toy(**options), ckpt_path=tmp_path / "stop.ckpt")
    assert first.steps == list(range(stop))
    assert second.steps == list(range(stop, 23))
    drawn = first.indices + second.indices
    assert all(torch.equal(a, b) for a, b in zip(drawn, unbroken.indices, strict=True))


@pytest.mark.filterwarnings("error:.*not resumable.*")
def test_a_loader_resumes_without_its_data_module(options: dict[str, Any], tmp_path: Path) -> None:
    options["steps_per_epoch"] = 10
    first, second = Recorder(), Recorder()
    stopped = trainer(14)
    stopped.fit(first, train_dataloaders=ready(**options).train_dataloader())
    stopped.save_checkpoint(tmp_path / "stop.ckpt")
    loader = ready(**options).train_dataloader()
    trainer(23).fit(second, train_dataloaders=loader, ckpt_path=tmp_path / "stop.ckpt")
    assert first.steps + second.steps == list(range(23))


def test_test_batches_arrive_as_they_were_made(options: dict[str, Any]) -> None:
    module, data = Recorder(), Toy(test_batch_size=10, **options)
    trainer(1).test(module, datamodule=data, verbose=False)
    images, labels, domains = (torch.cat(part) for part in zip(*module.tested, strict=True))
    assert [len(batch[0]) for batch in module.tested] == [10, 10, 5]
    pixels = data.test.images.double() / 255
    mean, std = (torch.tensor(value, dtype=torch.double) for value in (data.mean, data.std))
    expected = (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(labels, data.test.labels)
    assert torch.equal(domains, data.test.domains)


def test_nothing_is_copied_on_the_way_to_a_step(options: dict[str, Any]) -> None:
    data = ready(**options)
    train, test = data.grouped_batch(0), next(iter(data.test_dataloader()))
    meta = torch.device("meta")
    assert data.transfer_batch_to_device(train, meta, 0) is train
    assert data.transfer_batch_to_device(test, meta, 0) is test


def test_images_that_would_crowd_the_gpu_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Toy().load_splits()["train"]
    gpu = torch.device("cuda", 0)
    size = split.images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size, 80 * size))
    assert base_module._resident_device(split, gpu) == gpu
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size - 1, 80 * size))
    assert base_module._resident_device(split, gpu) == torch.device("cpu")
    assert base_module._resident_device(split, torch.device("cpu")) == torch.device("cpu")


def test_checkpoints_hold_plain_values_only(options: dict[str, Any], tmp_path: Path) -> None:
    run = trainer(2)
    run.fit(Recorder(), datamodule=Toy(number=60, **options))
    run.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    saved = checkpoint["datamodule_hyper_parameters"]
    assert saved["number"] == 60
    assert saved["fft_ratio"] == RATIO
    assert Toy.load_from_checkpoint(tmp_path / "run.ckpt").number == 60


def cli(*arguments: str) -> LightningDataModule:
    return LightningCLI(
        Recorder,
        LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=False,
        args=["--data", "tests.data.test_base.Toy", *arguments],
        run=False,
    ).datamodule


@pytest.mark.filterwarnings("ignore:.*args.*parameter is intended.*")
def test_the_command_line_knows_the_arguments_of_the_base(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = cli("--data.number", "30", "--data.batch_real", "7", "--data.seed", "4")
    assert (data.number, data.batch_real, data.seed, data.hparams["fft_ratio"]) == (30, 7, 4, 0.1)
    with pytest.raises(SystemExit):
        cli("--data.batch_raal", "7")
    assert "Option 'batch_raal' is not accepted" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_live_on_the_gpu(options: dict[str, Any]) -> None:
    data = Toy(**options)
    run = Trainer(accelerator="gpu", devices=1, max_steps=2, logger=False, barebones=True)
    run.fit(Recorder(), datamodule=data)
    assert data.train.images.is_cuda
    assert data.test.images.is_cuda
    assert data.grouped_batch(0).classes.images(range(3)).is_cuda


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_split_without_images_is_named(options: dict[str, Any], name: str) -> None:
    class Empty(Toy):
        def load_splits(self) -> Mapping[str, Split]:
            splits = dict(super().load_splits())
            splits[name] = splits["test"].subset(torch.tensor([], dtype=torch.int64))
            return splits

    with pytest.raises(ValueError, match=f"the {name} split of Empty has no images"):
        Empty(**options).setup()
