"""The command line: ``fit`` condenses, ``test`` evaluates, everything by YAML or options."""

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger

import dam_lightning
from dam_lightning.callbacks import CondensedPicture, LastCheckpoint, RunSummary, StepProgress

__all__ = ["main"]

_PACKAGE = Path(__file__).parent


class _SaveFitConfig(SaveConfigCallback):
    """Saves the configuration of a fit, which a later test in the same folder must not replace."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


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
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


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
        return parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        # Modules print tables of their own, by domain; Lightning's would repeat them as a list.
        for subcommand in ("validate", "test"):
            self._parser(subcommand).set_defaults(verbose=False)

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the class and arguments stored in the checkpoint replace what the user
        # wrote, silently. Modules check checkpoints themselves, in ``on_load_checkpoint``.
        return

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["barebones"]:
            self.trainer_defaults["callbacks"] = []
            return super().instantiate_trainer(**kwargs)
        if config["logger"] in (None, True):
            # What Lightning does without TensorBoard, without its advice to install it.
            kwargs["logger"] = CSVLogger(config["default_root_dir"] or Path.cwd())
        own: list[Callback] = [CondensedPicture(), RunSummary()]
        if config["enable_checkpointing"] is not False:
            own.append(LastCheckpoint())
        has_bar = any(isinstance(c, ProgressBar) for c in config["callbacks"] or [])
        if config["enable_progress_bar"] is not False and not has_bar:
            own.append(StepProgress())
        self.trainer_defaults["callbacks"] = own
        return super().instantiate_trainer(**kwargs)


def _filter_warnings() -> None:
    """Silence what Lightning says of choices that this package makes on purpose."""
    for message in (
        ".*no `val_dataloader`.*",  # test images must not be used for validation
        ".*does not have many workers.*",  # images are resident
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of PyTorch
    ):
        warnings.filterwarnings("ignore", message)


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: arguments instead of ``sys.argv``.
    """
    _filter_warnings()
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
        args=args,
    )


if __name__ == "__main__":
    main()
