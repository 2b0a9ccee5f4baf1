"""One run: condense, train fresh networks on what came of it, score them on validation images."""

import contextlib
import gc
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from importlib import import_module
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from benchmarks.comparison_settings import Settings
from dam_lightning import Condenser
from dam_lightning.callbacks import SignalsBetweenSteps
from dam_lightning.evaluation.accuracy import Scores
from dam_lightning.evaluation.ledger import describe_machine
from dam_lightning.evaluation.loop import EvaluatingModule

__all__ = ["run"]


def run(settings: Settings) -> dict[str, Any]:
    """Condense and validate, in this process; nothing stays of it but the figures.

    The figures are those of ``dam-lightning fit`` and ``dam-lightning validate``. Test images are
    loaded with the others where a dataset has them in one file, and looked at by nothing.

    Args:
        settings: of the run. The number of threads must be set already.

    Returns:
        ``accuracy`` and ``worst_domain``, in percent, one for each network; ``domains``, likewise
        of each domain that has validation images; ``images``, a digest of the condensed images, or
        None of real ones; ``seconds`` of ``condensing`` and ``validating``, ``device`` and
        ``version``.

    Raises:
        ValueError: for what the classes refuse, also as a ``TypeError``, ``OSError`` or
            ``MisconfigurationException``.
        FloatingPointError: the images diverged.
    """
    try:
        # No draw depends on PyTorch's own generator, but masks are tried out with it.
        with (
            _quiet(),
            torch.random.fork_rng(devices=[]),
            tempfile.TemporaryDirectory() as folder,
        ):
            return _run(settings, folder)
    finally:
        # What was compiled for this run is of no use to the next.
        torch.compiler.reset()
        gc.collect()


def _run(settings: Settings, folder: str) -> dict[str, Any]:
    module, data = _made(settings.model), _made(settings.data)
    options = {
        **settings.trainer,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    start = time.perf_counter()
    images = None
    if isinstance(module, Condenser):
        # Validation at the end of each epoch would train networks that nobody looks at.
        condensing = {"limit_val_batches": 0, "callbacks": [SignalsBetweenSteps()]}
        Trainer(**{**options, **condensing}).fit(module, datamodule=data)
        pixels = module.images.detach().cpu().contiguous()
        images = blake2b(pixels.numpy().tobytes(), digest_size=16).hexdigest()
    condensed = time.perf_counter()
    kept = _KeepScores()
    trainer = Trainer(**{**options, "callbacks": [kept, SignalsBetweenSteps()]})
    trainer.validate(module, datamodule=data, verbose=False)
    scores = kept.scores
    assert scores is not None
    machine = describe_machine(trainer.strategy.root_device)
    return {
        "accuracy": _percent(scores.overall),
        "worst_domain": _percent(scores.worst_domain),
        "domains": {
            name: _percent(column)
            for name, column in zip(data.domain_names, scores.per_domain.unbind(1), strict=True)
            if not bool(column.isnan().any())
        },
        "images": images,
        "seconds": {
            "condensing": condensed - start,
            "validating": time.perf_counter() - condensed,
        },
        "device": machine["device"],
        "version": machine["version"],
    }


class _KeepScores(Callback):
    """Keeps what each network scored, of which a module logs the mean."""

    scores: Scores | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Callbacks come before the module, which forgets its networks."""
        assert isinstance(pl_module, EvaluatingModule)
        (tested,) = pl_module._tested
        self.scores = tested.evaluator.scores()


def _made(described: dict[str, Any]) -> Any:
    """An object by its ``class_path`` and ``init_args``."""
    module, _, name = described["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**described["init_args"])


def _percent(fractions: torch.Tensor) -> list[float]:
    return [100 * value for value in fractions.double().tolist()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's lines and the modules' tables; warnings are heard."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
