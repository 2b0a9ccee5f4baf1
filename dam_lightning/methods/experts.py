"""Expert trajectories as a Lightning module of their own."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.backbones.options import BackboneArgs
from dam_lightning.evaluation.evaluator import Evaluator
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.files import check_writable
from dam_lightning.functional import DSA
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_set import ExpertSet
from dam_lightning.methods.expert_training import ExpertEpoch
from dam_lightning.precision import Precision

__all__ = ["Experts"]


class Experts(LightningModule):
    """Networks trained on the real data, whose parameters after every epoch are kept for `MTT`.

    ``fit`` trains those that are missing and stops by itself; after an interruption it goes on with
    those that are not finished. ``test`` says how well they classify the test images after their
    last epoch. `MTT` trains experts too where it finds none; this is for training them beforehand,
    elsewhere, or for longer.

    Args:
        num_domains: None: experts that learn the classes. Else such that learn the data module's
            so many pseudo-domains, for the domain loss of `MTT` with DAM.
        count: how many.
        epochs: for how long, each. `MTT` reads max_start_epoch + expert_epochs - 1.
        backbone: class of the networks, as `dam_lightning.backbones.build_backbone` takes it.
        backbone_args: its options.
        augmentation: DSA strategy, parameters drawn for each image; None switches it off.
        lr: step size of SGD, which has no momentum and no weight decay.
        batch_size: images in a step.
        folder: where their files go, in it ``class`` and ``domain``. None: a folder in the data
            module's cache, where `MTT` with the same settings finds them.
        seed: key of all draws.
        precision: of the forward passes, ``"float32"`` or ``"bfloat16"``, whatever the Trainer's
            is.
        compile: compile the training, which takes some seconds first and changes nothing beyond
            rounding. None: where it is long enough to pay for that.
        max_images: images whose activations may be in memory together; over ``batch_size`` it is
            the number of experts trained side by side. None: 8192, and one expert on a CPU.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        num_domains: int | None = None,
        count: int = 100,
        epochs: int = 50,
        backbone: str = "ConvNet",
        backbone_args: BackboneArgs | None = None,
        augmentation: str | None = DSA,
        lr: float = 0.01,
        batch_size: int = 256,
        folder: str | None = None,
        seed: int = 0,
        precision: Precision = "float32",
        compile: bool | None = None,
        max_images: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_domains", num_domains),
            ("count", count),
            ("epochs", epochs),
            ("max_images", max_images),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.save_hyperparameters()
        self.num_domains = num_domains
        self.count = count
        self.epochs = epochs
        self.recipe = ExpertRecipe(
            backbone, backbone_args or {}, augmentation, lr, batch_size, seed, precision
        )
        self.folder = folder
        self._compile = compile
        self.max_images = max_images
        self._experts: ExpertSet
        self._work: Iterator[ExpertEpoch]
        self._evaluator: Evaluator
        # Experts are trained side by side outside Lightning's optimisation; a step is an epoch.
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """Look at what is there already.

        Raises:
            MisconfigurationException: if there is no data module, or there are several processes.
            ValueError: if the folder holds other experts, or a damaged file; for ``test``, if
                experts are missing.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise MisconfigurationException("Experts take their images from a data module")
        if self.trainer.world_size > 1:
            raise MisconfigurationException(
                "Experts are trained in one process: use devices=1 (MTT deals those that it trains "
                "out over its processes)"
            )
        device = self.trainer.strategy.root_device
        self._experts = ExpertSet(
            ExpertData(data, self.num_domains, device),
            self.recipe,
            self.count,
            self.folder,
            self._compile,
        )
        missing = self._experts.missing(self.epochs)
        if stage == "fit":
            if self.trainer.max_steps != -1:
                raise MisconfigurationException(
                    f"Experts stop by themselves, after {self.epochs} epochs: leave out max_steps"
                )
            if missing:
                check_writable(self._experts.store.folder, "folder")
            self._work = self._experts.train(missing, self.epochs, self.max_images)
            rank_zero_info(
                f"{self.count - len(missing)} of {self.count} experts are there, in "
                f"{self._experts.store.folder}"
            )
        elif missing:
            raise ValueError(
                f"{len(missing)} of {self.count} experts are missing in "
                f"{self._experts.store.folder}: fit them first"
            )
        elif self.num_domains is not None:
            raise MisconfigurationException(
                "experts of pseudo-domains cannot be tested: test images have none"
            )

    def configure_optimizers(self) -> None:
        """None: experts have plain SGD."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train some experts for an epoch, or stop. The batch of real images is not used."""
        before = torch.get_default_dtype()
        # Experts are the same under every precision of the Trainer.
        torch.set_default_dtype(torch.float32)
        try:
            done = next(self._work, None)
        finally:
            torch.set_default_dtype(before)
        if done is None:
            self.trainer.should_stop = True
            return
        self.log("loss", done.loss, prog_bar=True)
        self.log("expert_epoch", float(done.epoch), prog_bar=True)

    def on_train_end(self) -> None:
        """Say where they are."""
        left = len(self._experts.missing(self.epochs))
        rank_zero_info(
            f"{self.count - left} of {self.count} experts are in {self._experts.store.folder}"
            + ("; fit again to train the others" if left else "")
        )

    def on_test_start(self) -> None:
        """Read the experts."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        networks = [self._experts.classifier(n, self.epochs) for n in range(self.count)]
        same = Recipe(self.recipe.backbone, self.recipe.backbone_args, compile=self._compile)
        self._evaluator = Evaluator(
            networks,
            data.num_classes,
            len(data.domain_names),
            self.device,
            same,
            sum(self.trainer.num_test_batches),
        )

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Test all experts on a batch of images, labels and domains."""
        self._evaluator.update(*batch)

    def on_test_epoch_end(self) -> None:
        """Log the mean accuracy, in percent."""
        accuracies = 100 * self._evaluator.scores().overall
        self.log("test/accuracy", accuracies.mean())
        rank_zero_info(
            f"{self.count} experts classify {float(accuracies.mean()):.1f} % of the test images "
            f"after {self.epochs} epochs ({float(accuracies.min()):.1f} to "
            f"{float(accuracies.max()):.1f})"
        )

    @torch.no_grad()
    def trajectory(self, number: int) -> Tensor:
        """Parameters of an expert before training and after every epoch, (epochs + 1, P)."""
        return self._experts.store.parameters(number, slice(None, self.epochs + 1))
