"""When pictures of a run are drawn and where they go: its folder and TensorBoard."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from dam_lightning import DM
from dam_lightning.callbacks import CondensedPicture, MaskPictures, PseudoDomainPicture, picture
from dam_lightning.callbacks.drawing import condensed_picture, mask_picture, view_picture
from dam_lightning.callbacks.drawing_domains import pseudo_domain_picture
from dam_lightning.data import Split
from dam_lightning.functional import domain_weights
from tests.tiny import (
    SMALL_NETWORK,
    LeaveTogether,
    TinyData,
    tiny_data,
    tiny_trainer,
    two_processes,
)

PICTURES = {"condensed", "masks", "views", "pseudo_domains"}


class Unknown(Logger):
    """A logger that knows no pictures."""

    name, version = "unknown", 0

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def callbacks(every_n_steps: int | None = None) -> list[Any]:
    return [CondensedPicture(every_n_steps), MaskPictures(every_n_steps), PseudoDomainPicture()]


def fit(
    folder: Path,
    used: list[Any] | None = None,
    data: Any = None,
    steps: int = 5,
    model: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[DM, Any]:
    module = DM(**{"dam": {}, "backbone_args": SMALL_NETWORK, "seed": 0, **(model or {})})
    used = callbacks() if used is None else used
    trainer = tiny_trainer(folder, max_steps=steps, callbacks=used, **options)
    data = data or tiny_data(folder)
    trainer.fit(module, datamodule=data)
    return module, data


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.png")}


def opened(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def events(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The (step, pixels) of the pictures in TensorBoard's event files, by tag."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {
        tag: [
            (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string))))
            for event in found.Images(tag)
        ]
        for tag in found.Tags()["images"]
    }


def loggers(kinds: str, folder: Path) -> Any:
    if "tensorboard" in kinds:
        pytest.importorskip("tensorboard")
    made = [
        {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[kind](folder, name=kind)
        if kind != "unknown"
        else Unknown()
        for kind in kinds.split()
    ]
    return made or False


@pytest.mark.parametrize(
    "kinds",
    ["", "csv", "tensorboard", "csv tensorboard", "tensorboard csv", "unknown", "unknown csv"],
)
def test_pictures_lie_in_the_folder_of_the_run(tmp_path: Path, kinds: str) -> None:
    made = loggers(kinds, tmp_path)
    fit(tmp_path, logger=made)
    first = kinds.split()[0] if kinds else ""
    folder = tmp_path / first / "version_0" if first in ("csv", "tensorboard") else tmp_path
    assert (folder / "condensed.safetensors").exists()
    assert {path.stem for path in folder.glob("*.png")} == PICTURES
    assert len(list(tmp_path.rglob("*.png"))) == 4
    if "tensorboard" in kinds:
        shown = events(tmp_path / "tensorboard" / "version_0")
        assert set(shown) == PICTURES
        for name, ((step, pixels),) in shown.items():
            assert step == (0 if name == "pseudo_domains" else 5)
            assert np.array_equal(pixels, opened(folder / f"{name}.png"))


def test_several_tensorboards_get_the_pictures(tmp_path: Path) -> None:
    fit(
        tmp_path,
        logger=loggers("tensorboard csv", tmp_path) + loggers("tensorboard", tmp_path / "b"),
    )
    for folder in (tmp_path, tmp_path / "b"):
        assert set(events(folder / "tensorboard" / "version_0")) == PICTURES


def test_the_pictures_are_those_of_the_run(tmp_path: Path) -> None:
    module, data = fit(tmp_path)
    condensed = module.condensed_set()
    pixels = condensed.pixels()
    assert module.dam is not None
    weights = domain_weights(module.dam.logits.detach(), 0.1)
    assert not torch.allclose(weights, torch.full_like(weights, 1 / 4))
    split = data.train
    expected = {
        "condensed": condensed_picture(pixels, condensed.labels),
        "masks": mask_picture(pixels, weights, data.class_names),
        "views": view_picture(condensed.images, weights, condensed.denormalise, data.class_names),
        "pseudo_domains": pseudo_domain_picture(
            split.images,
            data.pseudo_domain_scores,
            data.pseudo_domains,
            split.domains,
            data.domain_names,
            "low-frequency amplitude",
            "sorted by low-frequency amplitude",
        ),
    }
    for name, made in expected.items():
        assert np.array_equal(opened(tmp_path / f"{name}.png"), np.asarray(made)), name


def test_masks_are_shown_of_the_first_image_of_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def spy(pixels: Any, weights: Any, names: Any) -> Image.Image:
        given.update(pixels=pixels, weights=weights, names=names)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(picture, "mask_picture", spy)
    monkeypatch.setattr(picture, "_ROWS", 2)
    module, _ = fit(tmp_path, model={"ipc": 3, "dam": {"temperature": 0.5}})
    assert module.dam is not None
    assert given["names"] == ["ant", "bee"]
    assert torch.equal(given["pixels"], module.condensed_set().pixels()[[0, 3]])
    expected = domain_weights(module.dam.logits.detach()[[0, 3]], 0.5)
    assert torch.equal(given["weights"], expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_images_without_colours(tmp_path: Path, channels: int) -> None:
    class Grey(TinyData):
        mean = (0.5, 0.4)[:channels]
        std = (0.2, 0.3)[:channels]

        def load_splits(self) -> Mapping[str, Split]:
            return {
                name: Split(s.images[:, :channels].contiguous(), s.labels, s.domains, s.paths)
                for name, s in super().load_splits().items()
            }

    data = Grey(cache_dir=str(tmp_path / "cache"))
    fit(tmp_path, data=data, model={"augmentation": None})
    assert drawn(tmp_path) == PICTURES
    assert opened(tmp_path / "condensed.png").ndim == 3


# When they are drawn.


@pytest.mark.parametrize(
    ("every_n_steps", "expected"), [(2, [2, 4, 5]), (5, [5]), (None, [5]), (1000, [5])]
)
def test_pictures_now_and_then(
    tmp_path: Path, every_n_steps: int | None, expected: list[int]
) -> None:
    made = loggers("tensorboard", tmp_path)
    fit(tmp_path, callbacks(every_n_steps), logger=made)
    shown = events(tmp_path / "tensorboard" / "version_0")
    for name in ("condensed", "masks", "views"):
        assert [step for step, _ in shown[name]] == expected
        assert all(
            not np.array_equal(a[1], b[1])
            for a, b in zip(shown[name][:-1], shown[name][1:], strict=True)
        )
    assert [step for step, _ in shown["pseudo_domains"]] == [0]


@pytest.mark.parametrize("kind", [CondensedPicture, MaskPictures])
def test_the_steps_between_pictures_must_be_positive(kind: Any) -> None:
    assert kind().every_n_steps == 1000
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
            kind(every_n_steps=wrong)


def test_a_callback_serves_one_fit_after_another(tmp_path: Path) -> None:
    used = callbacks()
    for name in ("first", "second"):
        fit(tmp_path / name, used)
        assert drawn(tmp_path / name) == PICTURES


def test_pictures_change_nothing(tmp_path: Path) -> None:
    with_them, _ = fit(tmp_path / "with", callbacks(1))
    without, _ = fit(tmp_path / "without", [])
    assert torch.equal(with_them.images, without.images)


def test_a_rehearsal_leaves_nothing(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    fit(tmp_path / "run", callbacks(1), data, fast_dev_run=True)
    assert not list((tmp_path / "run").rglob("*"))


class Telling(CondensedPicture):
    """Leaves a file named after the process that draws."""

    def _draw(self, condenser: Any) -> Any:
        rank = condenser.trainer.global_rank
        (Path(condenser.trainer.default_root_dir) / f"drawn_by_{rank}").touch()
        return super()._draw(condenser)


def test_one_of_several_processes_draws(tmp_path: Path) -> None:
    module = DM(dam={}, backbone_args=SMALL_NETWORK, seed=0)
    used = [LeaveTogether(), Telling(1), MaskPictures(1), PseudoDomainPicture()]
    trainer = two_processes(tmp_path, max_steps=2, callbacks=used, logger=CSVLogger(tmp_path))
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    folders = [path.parent for path in tmp_path.rglob("*.png")]
    assert folders == [tmp_path / "lightning_logs" / "version_0"] * 4
    assert [path.name for path in tmp_path.glob("drawn_by_*")] == ["drawn_by_0"]


# Where there is nothing to draw, or it cannot be drawn.


@pytest.mark.parametrize("dam", [None, {"weight": 0.0}])
def test_without_dam_there_are_neither_masks_nor_pseudo_domains(
    tmp_path: Path, dam: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny_data(tmp_path)
    with caplog.at_level("INFO"):
        fit(tmp_path, callbacks(2), data, model={"dam": dam})
    assert drawn(tmp_path) == {"condensed"}
    assert not [line for line in caplog.messages if "pseudo-domains" in line]
    # They cost a Fourier transform of all images.
    assert "pseudo_domain_scores" not in vars(data)


class Foreign(LightningDataModule):
    """Someone's own data, which have what a Condenser needs and no more."""

    def __init__(self, inner: TinyData, extra: Mapping[str, Any]) -> None:
        super().__init__()
        self._inner = inner
        inner.setup_domains(4)
        for name in ("num_classes", "image_shape", "class_names", "domain_names", "mean", "std"):
            setattr(self, name, getattr(inner, name))
        for name, value in extra.items():
            setattr(self, name, value(inner))

    def setup_domains(self, num_domains: int) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self._inner.train_dataloader()


class Bare:
    """A training split without domains, and with images if asked for."""

    def __init__(self, inner: TinyData, images: bool = True) -> None:
        self.labels = inner.train.labels
        if images:
            self.images = inner.train.images


IMAGELESS = {"train": lambda inner: Bare(inner, images=False)}
IMAGES = {"train": Bare}
DOMAINS = {"pseudo_domains": lambda inner: inner.pseudo_domains}
SCORES = {"pseudo_domain_scores": lambda inner: inner.pseudo_domain_scores}


@pytest.mark.parametrize(
    "extra",
    [IMAGELESS, IMAGELESS | DOMAINS | SCORES, IMAGES | SCORES],
    ids=["nothing", "no images", "no pseudo-domains"],
)
def test_data_without_what_the_picture_takes(
    tmp_path: Path, extra: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, data=Foreign(tiny_data(tmp_path), extra))
    assert drawn(tmp_path) == PICTURES - {"pseudo_domains"}
    lines = [line for line in caplog.messages if "No picture of the pseudo-domains" in line]
    assert len(lines) == 1


@pytest.mark.parametrize("extra", [SCORES, {}], ids=["scores", "no scores"])
def test_data_without_domains_of_their_own(tmp_path: Path, extra: Mapping[str, Any]) -> None:
    fit(tmp_path, data=Foreign(tiny_data(tmp_path), IMAGES | DOMAINS | extra))
    assert drawn(tmp_path) == PICTURES


@pytest.mark.parametrize(
    ("labels", "grouping"),
    [("fft", "k_means"), ("log_variance", "mean_sort"), ("random", None), ("actual", None)],
)
def test_every_labelling_has_a_picture(tmp_path: Path, labels: str, grouping: str | None) -> None:
    options = {"pseudo_grouping": grouping} if grouping else {}
    data = tiny_data(tmp_path, pseudo_labels=labels, **options)
    _, data = fit(tmp_path, data=data, model={"dam": {"num_domains": 2}})
    assert drawn(tmp_path) == PICTURES
    assert (data.pseudo_domain_scores is None) == (labels in ("random", "actual"))


def test_a_fit_of_something_else(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = tiny_trainer(tmp_path, max_steps=2, callbacks=callbacks(1))
    trainer.fit(Plain(), torch.utils.data.DataLoader(torch.zeros(4, 1)))
    assert not drawn(tmp_path)
    assert not [line for line in recwarn if "picture" in str(line.message)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("odd")])
def test_a_picture_that_fails_does_not_end_the_run(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.warns(UserWarning, match="picture of the run is missing.*(No space|odd)"):
        module, _ = fit(tmp_path, callbacks(2))
    assert module.global_step == 5
    assert (tmp_path / "condensed.safetensors").exists()
    # Nothing half there.
    assert not [path for path in tmp_path.iterdir() if "png" in path.name]
