"""The data module that every dataset is built on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.data.domain_choice import DomainChoice
from dam_lightning.data.groups import GroupedBatch, GroupedLoader, GroupIndex, Groups, TestLoader
from dam_lightning.data.normalisation import Normalisation, channel_statistics
from dam_lightning.data.pseudo_labels import (
    PseudoGrouping,
    PseudoLabeller,
    PseudoLabelling,
    PseudoLabels,
    PseudoScope,
)
from dam_lightning.data.resident import (
    CACHE_VERSION,
    Split,
    content_fingerprint,
    default_cache_dir,
    part_fingerprint,
)
from dam_lightning.data.results import computed_once
from dam_lightning.data.splitting import check_share, held_out
from dam_lightning.functional import Whitening, zca_matrix
from dam_lightning.functional.pseudo_domains import FrequencyWindow
from dam_lightning.randomness import run_seed

__all__ = ["ResidentDataModule"]

_ALL_DOMAINS = DomainChoice(None, None, None, "all")

_MAX_WHITENED = 3072
"""Values of an image, 3 x 32 x 32, beyond which whitening is refused: memory grows with the square
and time with the cube (at the limit: 36 MB for the matrix, half a minute for CIFAR-10)."""


class ResidentDataModule(LightningDataModule, ABC):
    """Real images, decoded, on the accelerator, grouped by class and by pseudo-domain.

    A dataset is a subclass that implements :meth:`load_splits` and has the class attributes
    ``class_names``, ``domain_names``, ``mean`` and ``std`` (or sets them there; without ``mean``
    and ``std`` they are measured on the training images). It works with a Trainer and without one::

        data = Digits()
        data.prepare_data()
        data.setup()
        data.setup_domains(4)
        for batch in data.train_dataloader():
            images = batch.classes.images([0, 3])  # (2, B, C, H, W)

    After :meth:`setup` there are, besides those four, ``train``, ``test`` and ``val`` (each a
    :class:`~dam_lightning.data.resident.Split`; ``val`` may be None), ``num_classes``,
    ``image_shape``, ``fingerprint``, ``whitening`` and ``normalisation``; after
    :meth:`setup_domains` also ``pseudo_domains``. With ``zca``, ``mean`` and ``std`` are zeros and
    ones after :meth:`setup`, whatever the dataset has: whitened images have no other normalisation.

    Args:
        batch_real: real images of each group in a step; a smaller group takes part with all of its.
        steps_per_epoch: batches that the train loader calls an epoch. Condensation knows no epochs;
            this only sets how often Lightning ends one.
        test_batch_size: images in a batch of the test loader.
        pseudo_labels: what pseudo-domains are made of: ``"fft"``, low-frequency amplitude;
            ``"log_variance"`` of an untrained network's features; ``"random"`` groups of equal
            size (DAM's ``init`` is then ``"one_hot"`` in the paper's ablation); or ``"actual"``,
            the domains that the data have, whose number must then be DAM's ``num_domains``.
        pseudo_grouping: how the first two are grouped: ``"mean_sort"``, sorted by the mean and cut
            into equal parts, or ``"k_means"``.
        pseudo_scope: ``"global"``, or ``"class"``: the images of each class by themselves.
        fft_ratio: size of the window of low frequencies.
        fft_window: what ``fft_ratio`` is: ``"half_width"``, half the window's width as a share of
            the image's shorter side (FDA), or ``"area"``, its share of all frequencies (FACT); see
            :func:`~dam_lightning.functional.pseudo_domains.low_frequency_spectrum`.
        fft_log: take log(1 + amplitude) in place of the amplitude.
        validation_share: share of the training images of each class of each domain that is held
            out, to choose by (the best state, an option). None: nothing is.
        train_domains: names of the domains, or of the one, whose training images are used. None:
            all.
        test_domains: likewise, of the test images that are tested on.
        left_out_domain: name of a domain that is kept from training and is all that is tested on
            (leave-one-domain-out).
        left_out_part: what of that domain is tested on: ``"all"`` its images, which are unseen, or
            only those of its ``"test"`` split.
        zca: whiten all images as the training images ask for, in place of normalising with ``mean``
            and ``std``; see :func:`~dam_lightning.functional.zca_matrix`. Pseudo-domains are always
            made of raw images. Training, test and condensed images must agree in it.
        split_seed: of splits drawn by chance: the validation part, and in datasets without given
            splits the test part; of random pseudo-domains and of the starts of k-means. Not the
            run's seed: every run must have the same images in them.
        seed: of the draws of real images. None: the run's seed, as ``seed_everything`` set it. A
            run resumed with None goes on with the seed it was begun with.
        cache_dir: folder for decoded images, pseudo-domain scores and whitening matrices. None:
            ``$XDG_CACHE_HOME/dam_lightning`` or ``~/.cache/dam_lightning``.

    Raises:
        ValueError: an argument is out of range.
    """

    class_names: Sequence[str]
    """Names of the classes, in the order of the labels; a list after :meth:`setup`."""
    domain_names: Sequence[str]
    """Names of the domains, in the order of their numbers (one for a dataset without domains); a
    list after :meth:`setup`."""
    mean: tuple[float, ...]
    """Normalisation: mean of each channel, in units of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Normalisation: standard deviation of each channel, in the same units."""
    whitening: Whitening | None = None
    """What takes the place of ``mean`` and ``std`` with ``zca``: float32 on the CPU."""
    normalisation: Normalisation
    """Makes what networks see of the pixels of a split, on the Trainer's device."""
    fingerprint: str
    """Hex digest of the decoded training data, labels, domains and class names."""
    train: Split
    test: Split
    val: Split | None = None
    pseudo_labelling: PseudoLabelling
    """What the arguments say about pseudo-domains, with a description in words."""
    pseudo_domains: Tensor | None
    """(N,) int64 on the CPU: the pseudo-domain of each training image."""

    def __init__(
        self,
        batch_real: int = 256,
        steps_per_epoch: int = 100,
        test_batch_size: int = 256,
        pseudo_labels: PseudoLabels = "fft",
        pseudo_grouping: PseudoGrouping = "mean_sort",
        pseudo_scope: PseudoScope = "global",
        fft_ratio: float = 0.1,
        fft_window: FrequencyWindow = "half_width",
        fft_log: bool = False,
        validation_share: float | None = None,
        train_domains: list[str] | str | None = None,
        test_domains: list[str] | str | None = None,
        left_out_domain: str | None = None,
        left_out_part: Literal["all", "test"] = "all",
        zca: bool = False,
        split_seed: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_real", batch_real),
            ("steps_per_epoch", steps_per_epoch),
            ("test_batch_size", test_batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.pseudo_labelling = PseudoLabelling(
            pseudo_labels,
            pseudo_grouping,
            pseudo_scope,
            fft_ratio,
            fft_window,
            fft_log,
            split_seed,
        )
        if validation_share is not None:
            check_share("validation_share", validation_share)
        self.choice = DomainChoice(
            [train_domains] if isinstance(train_domains, str) else train_domains,
            [test_domains] if isinstance(test_domains, str) else test_domains,
            left_out_domain,
            left_out_part,
        )
        # Not to the logger: Lightning refuses to log a module and a data module that both have a
        # ``seed`` and differ in it.
        self.save_hyperparameters(logger=False)
        self.batch_real = batch_real
        self.steps_per_epoch = steps_per_epoch
        self.test_batch_size = test_batch_size
        self.validation_share = validation_share
        self.zca = zca
        self.split_seed = split_seed
        self.seed = run_seed() if seed is None else seed
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.pseudo_domains = None
        self._seed_is_given = seed is not None
        self._device: torch.device | None = None
        self._class_index: GroupIndex
        self._domain_index: GroupIndex | None = None

    # What a dataset implements.

    @abstractmethod
    def load_splits(self) -> Mapping[str, Split]:
        """Make the splits ``"train"`` and ``"test"`` with their images on the CPU.

        A split ``"val"`` may be there too, of datasets with validation images of their own. Called
        once by :meth:`setup`, on every rank. May set ``class_names``, ``domain_names``,
        ``mean`` and ``std`` where the class does not, and ``fingerprint`` where it is known without
        being computed (see :func:`~dam_lightning.data.resident.content_fingerprint`).
        """

    # What Lightning calls.

    def setup(self, stage: str | None = None) -> None:
        """Load the splits and put their images on the accelerator where they fit, else leave them.

        Args:
            stage: every stage needs the same, but ``"validate"`` refuses data without validation
                images. Repeated calls do nothing.

        Raises:
            ValueError: a split or a class of the training split has no images, there are no
                validation images where they are needed, or images are too large to be whitened.
        """
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if self._device is None:
            splits = self.load_splits()
            empty = [name for name, images in splits.items() if len(images) == 0]
            if empty:
                raise ValueError(
                    f"the {empty[0]} split of {type(self).__name__} has no images: add some"
                )
            self.class_names = list(self.class_names)
            self.domain_names = list(self.domain_names)
            if not hasattr(self, "fingerprint"):
                self.fingerprint = content_fingerprint(splits["train"], self.class_names)
            chosen = self.choice.apply(splits, self.domain_names)
            if len(chosen["train"]) < len(splits["train"]):
                kept = self.choice.trained_on(splits["train"].domains, self.domain_names)
                self.fingerprint = part_fingerprint(self.fingerprint, kept)
            self.train, self.test = chosen["train"], chosen["test"]
            self._set_validation(chosen.get("val"))
            if self.choice != _ALL_DOMAINS:
                rank_zero_info(
                    f"{len(self.train)} training images of {self._domains_of(self.train)}; "
                    f"{len(self.test)} test images of {self._domains_of(self.test)}."
                )
            self._check_classes(len(self.train) < len(splits["train"]))
            self._class_index = GroupIndex(self.train.labels, self.class_names)
            if self.zca:
                self.whitening = self._fit_whitening()
                channels = self.image_shape[0]
                self.mean, self.std = (0.0,) * channels, (1.0,) * channels
            elif not hasattr(self, "mean"):
                self.mean, self.std = channel_statistics(self.train.images)
        if device != self._device:
            for name in ("train", "test", "val"):
                split: Split | None = getattr(self, name)
                if split is not None:
                    setattr(self, name, split.to(_resident_device(split, device)))
            self.normalisation = Normalisation(self.mean, self.std, self.whitening, device)
            self._device = device
        if stage == "validate" and not self.val_dataloader():
            raise ValueError(
                "there are no validation images: hold some out with the data module's "
                "validation_share"
            )

    def train_dataloader(self) -> GroupedLoader:
        """``steps_per_epoch`` batches of real images, beginning with the Trainer's global step.

        The domains of a batch are None until :meth:`setup_domains` was called.
        """
        return GroupedLoader(
            self.grouped_batch,
            self.steps_per_epoch,
            lambda: None if self.trainer is None else self.trainer.global_step,
        )

    def val_dataloader(self) -> "TestLoader | list[TestLoader]":
        """Validation images as in :meth:`test_dataloader`; no loader where there are none."""
        return [] if self.val is None else self._loader(self.val)

    def test_dataloader(self) -> TestLoader:
        """Test images in order; under several processes, this rank's share of them."""
        return self._loader(self.test)

    def _loader(self, split: Split) -> TestLoader:
        rank, world_size = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        return TestLoader(split, self.test_batch_size, self.normalisation, rank, world_size)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Return the batch as it is: the loaders already make it on the device."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The seed, so that a resumed run draws on from the same streams."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is resumed, unless one was given."""
        if not self._seed_is_given:
            self.seed = state_dict["seed"]

    # What condensation calls.

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, after :meth:`setup`."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def grouped_batch(self, step: int) -> GroupedBatch:
        """The real images of a global step: always the same for the same seed and step."""
        domains = None
        if self._domain_index is not None:
            domains = self._groups(self._domain_index, "real/domain", step)
        return GroupedBatch(step, self._groups(self._class_index, "real/class", step), domains)

    def setup_domains(self, num_domains: int) -> None:
        """Give every training image its pseudo-domain, as ``pseudo_labels`` says.

        By default eq. 4 and 5 of the paper on raw pixels in [0, 1], in float64: sorted over the
        whole training set by low-frequency amplitude and cut into equal parts. What takes long is
        cached on disk; another number of domains only cuts it anew. Sets ``pseudo_domains``.

        Args:
            num_domains: D.

        Raises:
            ValueError: D is not positive, there are fewer (different) images than domains, or D is
                not the number of true domains with ``pseudo_labels="actual"``.
        """
        self.pseudo_domains = self._labeller.assign(num_domains)
        self._domain_index = GroupIndex(
            self.pseudo_domains, [f"pseudo-domain {number}" for number in range(num_domains)]
        )

    def hold_out(self, train: Split) -> Tensor:
        """Choose the training images that ``validation_share`` takes away: (N,) bool.

        A dataset in which several images show the same thing overrides it.
        """
        assert self.validation_share is not None
        return held_out(
            train.labels, train.domains, self.validation_share, self.split_seed, "validation"
        )

    def _set_validation(self, given: Split | None) -> None:
        """Take the dataset's own validation images, or hold out some of the training images."""
        self.val = given
        if self.validation_share is None:
            return
        if given is not None:
            raise ValueError(
                "the dataset has validation images of its own: leave out validation_share"
            )
        chosen = self.hold_out(self.train)
        if not bool(chosen.any()):
            raise ValueError(
                f"validation_share {self.validation_share} of {len(self.train)} training images "
                "holds out none: raise it, or leave it out"
            )
        rank_zero_info(
            f"{int(chosen.sum())} of {len(self.train)} training images are held out for validation."
        )
        self.train, self.val = self.train.subset(~chosen), self.train.subset(chosen)
        self.fingerprint = part_fingerprint(self.fingerprint, ~chosen)

    def _domains_of(self, split: Split) -> str:
        present = sorted(set(split.domains.tolist()))
        return ", ".join(self.domain_names[number] for number in present)

    def _check_classes(self, is_part: bool) -> None:
        """Refuse a choice of domains that lack a class."""
        sizes = self.train.labels.bincount(minlength=len(self.class_names)).tolist()
        missing = [name for name, size in zip(self.class_names, sizes, strict=True) if not size]
        if missing and is_part:
            raise ValueError(
                f"the chosen domains have no training images of {', '.join(missing)}: choose "
                "others, or more of them (train_domains, left_out_domain), or another split of the "
                "dataset into training and test images"
            )

    def _groups(self, index: GroupIndex, stream: str, step: int) -> Groups:
        indices, counts = index.draw(self.batch_real, self.seed, stream, step)
        return Groups(self.train, indices, counts, self.normalisation)

    def _fit_whitening(self) -> Whitening:
        """From the cache file, or fitted to the training images."""
        channels, height, width = self.image_shape
        dimensions = channels * height * width
        if dimensions > _MAX_WHITENED:
            raise ValueError(
                f"images of {channels} x {height} x {width} = {dimensions} values cannot be "
                f"whitened, the limit is {_MAX_WHITENED}: set zca to false, or use smaller images "
                "(3 x 32 x 32)"
            )

        def fit() -> dict[str, Tensor]:
            rank_zero_info(
                f"Fitting the whitening of {dimensions} values to {len(self.train)} training "
                f"images; this is done once and kept in {self.cache_dir}."
            )
            # Always on the CPU, as the pseudo-domains: every device then sees the same images.
            mean, matrix = zca_matrix(self.train.images.cpu())
            return {"mean": mean.float(), "matrix": matrix.float()}

        found = computed_once(self._cached_result("zca"), fit)
        return Whitening(found["mean"], found["matrix"])

    def _cached_result(self, kind: str, *arguments: object) -> Path:
        """File for something computed of the training data."""
        parts = (str(CACHE_VERSION), self.fingerprint, *map(repr, arguments))
        key = blake2b("|".join(parts).encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"{kind}-{key}.safetensors"

    @cached_property
    def pseudo_domain_scores(self) -> Tensor | None:
        """(N,) float64 on the CPU: what the pseudo-domains are cut, or numbered, by.

        One number for each training image, the low-frequency amplitude by default, from the cache
        file or computed when first asked for. None with random and actual labels.
        """
        return self._labeller.scores

    @cached_property
    def _labeller(self) -> PseudoLabeller:
        return PseudoLabeller(
            self.pseudo_labelling,
            self.train,
            self.class_names,
            self.domain_names,
            # Whitening has no mean and deviation; pseudo-domains are of raw images.
            None if self.zca else (self.mean, self.std),
            self._cached_result,
        )


def _resident_device(split: Split, device: torch.device) -> torch.device:
    """``device``, or the CPU where the images would take more than half of its free memory."""
    if device.type == "cuda" and split.images.device != device:
        free, _ = torch.cuda.mem_get_info(device)
        if split.images.nbytes > free / 2:
            rank_zero_info(
                f"{split.images.nbytes / 2**30:.1f} GiB of images stay in host memory: {device} "
                f"has {free / 2**30:.1f} GiB free, half of which is kept for networks."
            )
            return torch.device("cpu")
    return device
