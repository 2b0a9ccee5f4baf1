"""The command line: ``fit`` condenses, ``test`` evaluates, everything by YAML or options."""

import contextlib
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

import dam_lightning
from dam_lightning.callbacks import (
    CondensedPicture,
    LastCheckpoint,
    MaskPictures,
    PseudoDomainPicture,
    RunSummary,
    SignalsBetweenSteps,
    StepProgress,
)
from dam_lightning.ending import end_if_asked
from dam_lightning.files import check_writable
from dam_lightning.messages import ArgumentParser, said_of
from dam_lightning.methods.base import Condenser
from dam_lightning.methods.trainer_options import check_trainer_options
from dam_lightning.run_logger import RunLogger

__all__ = ["main"]

_PACKAGE = Path(__file__).parent

_CALLBACKS: tuple[type[Callback], ...] = (
    CondensedPicture,
    MaskPictures,
    PseudoDomainPicture,
    RunSummary,
)
"""What every run has, besides a checkpoint and a progress bar where they are not switched off."""


class _SaveFitConfig(SaveConfigCallback):
    """Saves the configuration of a fit, which a later test in the same folder must not replace."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a run that is refused leaves no file."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the folders that loggers make before anything is checked, where they are empty."""
        if not self.already_saved and trainer.is_global_zero:
            for logger in trainer.loggers:
                for folder in (logger.log_dir, logger.root_dir):
                    with contextlib.suppress(OSError):
                        Path(folder or "").rmdir()


class _ConfigFile(ActionConfigFile):
    """A configuration file of the user's, or one that the package ships."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        if isinstance(values, str) and not Path(values).is_file():
            # An installed package carries them inside; a checkout has them beside it.
            for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
                shipped = folder / values.removeprefix("configs/")
                values = str(shipped) if shipped.is_file() else values
            if Path(values).is_dir():
                parser.error(f"the config {values} is a folder: give a file of it")
            if not Path(values).is_file():
                parser.error(
                    f"there is no config {values}, neither here nor among those of the package "
                    f"({', '.join(_shipped())})"
                )
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def _shipped() -> list[str]:
    """Folders and files of the configs that come with the package."""
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    found = next((folder for folder in folders if folder.is_dir()), None)
    return [] if found is None else sorted(path.name for path in found.iterdir())


class _CLI(LightningCLI):
    """Lightning's command line, with shipped configs, and checkpoints that replace no argument."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=_ConfigFile,
            help="Path of a YAML file, or the name of a shipped one such as quickstart.yaml.",
        )
        parser.add_argument(
            "--traceback",
            action="store_true",
            help="Show where an error was raised, not only what it says.",
        )
        return parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        # Modules print tables of their own, by domain; Lightning's would repeat them as a list.
        for subcommand in ("validate", "test"):
            self._parser(subcommand).set_defaults(verbose=False)

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the class and arguments stored in the checkpoint replace what the user
        # wrote, silently. Modules check checkpoints themselves, in ``on_load_checkpoint``.
        config = self.config.get(self.config.get("subcommand"))
        if config is None or config.get("ckpt_path") not in ("last", "best"):
            return
        if config.ckpt_path == "best":
            raise MisconfigurationException(
                "what is best is known to the run alone that found it: give --ckpt_path the file, "
                "from the folder checkpoints of the run"
            )
        config.ckpt_path = _newest(Path(config.trainer.default_root_dir or Path.cwd()))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if self.subcommand == "fit" and isinstance(self.model, Condenser):
            _check_trainer_config(config)
        check_writable(Path(config["default_root_dir"] or Path.cwd()), "--trainer.default_root_dir")
        if config["barebones"]:
            self.trainer_defaults["callbacks"] = []
            return super().instantiate_trainer(**kwargs)
        if config["logger"] in (None, True):
            # What Lightning does without TensorBoard, without its advice to install it.
            kwargs["logger"] = RunLogger(config["default_root_dir"] or Path.cwd())
        own = list(_CALLBACKS)
        if config["enable_checkpointing"] is not False:
            own += [LastCheckpoint, SignalsBetweenSteps]
        if config["enable_progress_bar"] is not False and not _is_given(config, ProgressBar):
            own.append(StepProgress)
        # One that the user configured takes the place of ours.
        self.trainer_defaults["callbacks"] = [
            callback() for callback in own if not _is_given(config, callback)
        ]
        return super().instantiate_trainer(**kwargs)


def _newest(folder: Path) -> str | None:
    """The last checkpoint of the newest run in a folder; None where a first run is to begin."""
    # The second is what SLURM's signal leaves.
    patterns = ("last.ckpt", "hpc_ckpt_*.ckpt", "lightning_logs/version_*/last.ckpt")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if not found:
        rank_zero_info(f"There is no last.ckpt of a run in {folder} yet: this is the first")
        return None
    newest = str(max(found, key=lambda path: path.stat().st_mtime))
    rank_zero_info(f"The last checkpoint is {newest}")
    return newest


def _is_given(config: Any, kind: type[Callback]) -> bool:
    """Whether the user configured a callback of a kind."""
    callbacks = config["callbacks"] or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(callback, kind) for callback in listed)


def _check_trainer_config(config: Any) -> None:
    """Refuse what a Condenser refuses, before Lightning replaces or rejects it by itself."""
    check_trainer_options(
        config["precision"] or "32-true",
        config["strategy"],
        config["accumulate_grad_batches"],
        config["max_steps"],
        config["max_epochs"],
        config["limit_train_batches"],
    )
    limits = (config["max_steps"], config["max_epochs"] or -1)
    ends = config["max_time"] or config["fast_dev_run"]
    if limits == (-1, -1) and not (ends or _is_given(config, EarlyStopping)):
        raise MisconfigurationException(
            "the fit would never end: give --trainer.max_steps, the number of image updates"
        )


def _filter_warnings() -> None:
    """Silence advertisements, and what is said of choices that are made on purpose."""
    for message in (
        ".*no `val_dataloader`.*",  # test images must not be used for validation
        ".*Total length of `list` across ranks is zero.*",  # no validation images
        ".*does not have many workers.*",  # images are resident
        ".*`configure_optimizers` returned `None`.*",  # modules that train networks by themselves
        ".*but have no `validation_step`.*",  # experts, which nothing chooses among
        ".*is smaller than the logging interval.*",  # steps are counted on from epoch to epoch
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of PyTorch
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())


def _leave_together() -> None:
    """End the process group, if there is one, while all of its processes are alive.

    Left to the exit of each process, gloo's threads now and then abort it, or keep it from ending.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _end_if_asked(error: Exception) -> None:
    """Asked to end, a process whose others have ended before it has no other error to tell of."""
    try:
        end_if_asked()
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from error


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: arguments instead of ``sys.argv``.

    Raises:
        SystemExit: with status 1 and one line on the standard error where something given is no
            good; with status 2 where the arguments themselves are not; with status 143 after
            SIGTERM.
    """
    _filter_warnings()
    try:
        _CLI(
            LightningModule,
            LightningDataModule,
            save_config_callback=_SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": -1, "enable_model_summary": False},
            seed_everything_default=0,
            parser_kwargs={"version": dam_lightning.__version__},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=ArgumentParser,
            args=args,
        )
        _leave_together()
    except SIGTERMException as error:
        # As the shell has it of a process that the signal ended.
        raise SystemExit(128 + signal.SIGTERM) from error
    except Exception as error:
        _end_if_asked(error)
        message = said_of(error)
        if message is None or "--traceback" in (sys.argv if args is None else args):
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
