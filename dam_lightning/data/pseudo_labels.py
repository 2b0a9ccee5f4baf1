"""Where pseudo-domains come from: what is measured on the real images, and how it is cut."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.data.clustering import k_means_groups
from dam_lightning.data.normalisation import Normalisation, channel_statistics
from dam_lightning.data.resident import Split
from dam_lightning.data.results import computed_once
from dam_lightning.functional import low_frequency_amplitude, rank_groups
from dam_lightning.functional.log_variance import log_variance_features
from dam_lightning.functional.pseudo_domains import (
    FrequencyWindow,
    check_window,
    low_frequency_spectrum,
)
from dam_lightning.randomness import numpy_generator, torch_generator

__all__ = [
    "PseudoGrouping",
    "PseudoLabeller",
    "PseudoLabelling",
    "PseudoLabels",
    "PseudoScope",
    "log_variance_network",
]

PseudoLabels = Literal["fft", "log_variance", "random", "actual"]
PseudoGrouping = Literal["mean_sort", "k_means"]
PseudoScope = Literal["global", "class"]

_CHUNK = 1024
"""Images whose Fourier transforms are in memory together (64x64 RGB in float64: 200 MB)."""
_CONVOLVED = 64
"""Images that are convolved together (64x64: 400 MB), always, as sums may depend on it."""
_WIDTH = 128
_FFT: tuple[float, FrequencyWindow, bool] = (0.1, "half_width", False)


@dataclass(frozen=True)
class PseudoLabelling:
    """How training images get their pseudo-domains.

    Args:
        labels: what they are made of: ``"fft"``, low-frequency amplitude (the paper's);
            ``"log_variance"``, log-variance features of an untrained ConvNet; ``"random"``, random
            groups of equal size; ``"actual"``, the domains that the data have.
        grouping: how images are grouped by the first two: ``"mean_sort"`` sorts them by the mean of
            what was measured and cuts into equal parts (the paper's), ``"k_means"`` clusters what
            was measured (amplitudes standardised) and numbers clusters by rising mean.
        scope: ``"global"`` groups all images together (the paper's), ``"class"`` those of each
            class by themselves, so that every class is in every pseudo-domain.
        fft_ratio: size of the window of low frequencies; see
            :func:`~dam_lightning.functional.pseudo_domains.low_frequency_spectrum`.
        fft_window: what ``fft_ratio`` is a share of, likewise.
        fft_log: take log(1 + amplitude).
        seed: of random groups and of the starts of k-means. The data module's ``split_seed``, not
            the run's seed: runs must agree in what the groups are, as they do with every other way
            to make them, and MTT's experts of pseudo-domains would be of use to a single run.

    Raises:
        ValueError: an argument is unknown or out of range, or has no meaning for such labels.
    """

    labels: PseudoLabels = "fft"
    grouping: PseudoGrouping = "mean_sort"
    scope: PseudoScope = "global"
    fft_ratio: float = _FFT[0]
    fft_window: FrequencyWindow = _FFT[1]
    fft_log: bool = _FFT[2]
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("pseudo_labels", self.labels, get_args(PseudoLabels)),
            ("pseudo_grouping", self.grouping, get_args(PseudoGrouping)),
            ("pseudo_scope", self.scope, get_args(PseudoScope)),
            ("fft_window", self.fft_window, get_args(FrequencyWindow)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        check_window("fft_ratio", self.fft_ratio, self.fft_window)
        if self.labels in ("random", "actual") and self.grouping != "mean_sort":
            raise ValueError(
                f"there is nothing to cluster with pseudo_labels {self.labels}: leave out "
                f"pseudo_grouping {self.grouping}"
            )
        fft = (self.fft_ratio, self.fft_window, self.fft_log)
        if self.labels != "fft" and fft != _FFT:
            raise ValueError(
                f"there are no amplitudes with pseudo_labels {self.labels}: leave out fft_ratio, "
                "fft_window and fft_log"
            )
        if self.labels == "actual" and self.scope != "global":
            raise ValueError("true domains are what they are: leave out pseudo_scope class")

    @property
    def score_name(self) -> str:
        """What a score is, where images have one."""
        if self.labels == "log_variance":
            return "mean log-variance of the features"
        return "low-frequency amplitude" + (" (log)" if self.fft_log else "")

    @property
    def description(self) -> str:
        """In a few words, for titles."""
        if self.labels == "actual":
            return "true domains"
        source = {"fft": self.score_name, "log_variance": "log-variance features"}
        how = {"mean_sort": "sorted by", "k_means": "k-means of"}[self.grouping]
        text = "random" if self.labels == "random" else f"{how} {source[self.labels]}"
        return text + (", each class by itself" if self.scope == "class" else "")


class PseudoLabeller:
    """Gives the images of a training split their pseudo-domains.

    What takes long is kept in cache files: amplitudes, log-variance features, clusters. It is
    always computed on the CPU, so that every device finds the same (but for the last bits of
    amplitudes, which depend on the number of threads).

    For 586,575 images of 64x64 on two cores: amplitudes half a minute; log-variance features about
    an hour and 0.6 GB (float32, 256 values an image); k-means of amplitudes 1.2 GB (507 values).

    Args:
        labelling: how.
        train: the images.
        class_names: for messages.
        domain_names: of all domain numbers, for messages.
        normalisation: mean and standard deviation of each channel, by which images are normalised
            for log-variance features. None: what they are in the training images.
        cache_file: path of the file for a kind of result and all that it depends on beside the
            training images.
    """

    def __init__(
        self,
        labelling: PseudoLabelling,
        train: Split,
        class_names: Sequence[str],
        domain_names: Sequence[str],
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
        cache_file: Callable[..., Path],
    ) -> None:
        self.labelling = labelling
        self._train = train
        self._class_names = class_names
        self._domain_names = domain_names
        self._normalisation = normalisation
        self._cache_file = cache_file

    def assign(self, num_domains: int) -> Tensor:
        """The pseudo-domain of each image.

        Args:
            num_domains: D.

        Returns:
            (N,) int64 in 0..D-1, none of them without images.

        Raises:
            ValueError: there are too few images, too few different ones for k-means, too few in a
                class that is grouped by itself; or D is not the number of true domains.
        """
        how = self.labelling
        if how.labels == "actual":
            return self._true_domains(num_domains)
        if not 1 <= num_domains <= len(self._train):
            raise ValueError(
                f"{num_domains} pseudo-domains cannot be made of {len(self._train)} training "
                "images: num_domains must be at least 1 and at most the number of images"
            )
        within = self._classes(num_domains) if how.scope == "class" else None
        if how.labels == "random":
            draws = numpy_generator(how.seed, "pseudo-domains/random")
            order = torch.from_numpy(draws.permutation(len(self._train)))
            return rank_groups(order.double(), num_domains, within)
        if how.grouping == "k_means":
            return self._clusters(num_domains, within)
        assert self.scores is not None
        return rank_groups(self.scores, num_domains, within)

    @cached_property
    def scores(self) -> Tensor | None:
        """(N,) float64: what images are sorted by, or their clusters are numbered by.

        The low-frequency amplitude, or the mean of the log-variance features. None with random
        groups and true domains.
        """
        if self.labelling.labels == "log_variance":
            return self._log_variance().double().mean(dim=1)
        if self.labelling.labels != "fft":
            return None
        how = self.labelling
        path = self._cache_file("amplitudes", how.fft_ratio, how.fft_window, how.fft_log)
        return computed_once(path, lambda: {"amplitudes": self._amplitudes()})["amplitudes"]

    def _amplitudes(self) -> Tensor:
        how = self.labelling
        return torch.cat(
            [
                low_frequency_amplitude(pixels, how.fft_ratio, how.fft_window, how.fft_log)
                for pixels in self._raw_chunks()
            ]
        )

    def _raw_chunks(self) -> Iterator[Tensor]:
        """All images in [0, 1] and float64, some at a time."""
        for chunk in torch.split(self._train.images, _CHUNK):
            yield chunk.cpu().double().div_(255)

    def _spectra(self) -> Tensor:
        """(N, F) float32: amplitudes of the whole window."""
        how = self.labelling
        spectra: Tensor | None = None
        start = 0
        for pixels in self._raw_chunks():
            chunk = low_frequency_spectrum(pixels, how.fft_ratio, how.fft_window).flatten(1)
            if spectra is None:
                # Filled piece by piece: joining pieces in the end would take twice the memory.
                spectra = torch.empty(len(self._train), chunk.shape[1])
            spectra[start : start + len(chunk)] = chunk.log1p() if how.fft_log else chunk
            start += len(chunk)
        assert spectra is not None
        return spectra

    def _log_variance(self) -> Tensor:
        """(N, 256) float32, from the cache file or computed."""
        path = self._cache_file("log-variance", self._normalisation)
        return computed_once(path, lambda: {"features": self._log_variance_features()})["features"]

    def _log_variance_features(self) -> Tensor:
        if len(self._train) > 20 * _CHUNK:
            rank_zero_info(
                f"Log-variance features of {len(self._train)} training images are computed, once; "
                "this takes minutes for every ten thousand."
            )
        mean, std = self._normalisation or channel_statistics(self._train.images)
        normalise = Normalisation(mean, std)
        network = log_variance_network(self._train.images.shape[1])
        features = torch.empty(len(self._train), 2 * _WIDTH)
        chunks = zip(
            torch.split(features, _CONVOLVED),
            torch.split(self._train.images, _CONVOLVED),
            strict=True,
        )
        with torch.inference_mode():
            for part, images in chunks:
                part.copy_(log_variance_features(normalise(images.cpu()), *network))
        return features

    def _clusters(self, num_domains: int, within: Tensor | None) -> Tensor:
        how = self.labelling
        source: tuple[object, ...] = (how.fft_ratio, how.fft_window, how.fft_log)
        if how.labels == "log_variance":
            source = (self._normalisation,)
        path = self._cache_file("k-means", how.labels, how.scope, how.seed, num_domains, *source)
        return computed_once(path, lambda: {"labels": self._k_means(num_domains, within)})["labels"]

    def _k_means(self, num_domains: int, within: Tensor | None) -> Tensor:
        scores = self.scores
        assert scores is not None
        is_fft = self.labelling.labels == "fft"
        return k_means_groups(
            self._spectra() if is_fft else self._log_variance(),
            scores,
            num_domains,
            self.labelling.seed,
            standardise=is_fft,
            within=within,
            names=self._class_names,
        )

    def _classes(self, num_domains: int) -> Tensor:
        """The classes, unless one is too small to be grouped by itself."""
        sizes = self._train.labels.bincount(minlength=len(self._class_names)).tolist()
        for name, size in zip(self._class_names, sizes, strict=True):
            if size < num_domains:
                raise ValueError(
                    f"class {name!r} has {size} training images, too few for {num_domains} "
                    "pseudo-domains of its own: use pseudo_scope global or a smaller num_domains"
                )
        return self._train.labels

    def _true_domains(self, num_domains: int) -> Tensor:
        present = self._train.domains.bincount().nonzero().flatten()
        names = ", ".join(self._domain_names[number] for number in present.tolist())
        if len(present) == 1:
            raise ValueError(
                f"all training images are of one domain, {names}: pseudo_labels actual needs data "
                "with several; use fft"
            )
        if num_domains != len(present):
            raise ValueError(
                f"the training images have {len(present)} domains ({names}), but num_domains is "
                f"{num_domains}: pseudo_labels actual needs --model.dam.num_domains {len(present)}"
            )
        return torch.searchsorted(present, self._train.domains)


def log_variance_network(channels: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Weights and biases of two 3x3 convolutions to 128 channels, untrained.

    Drawn as PyTorch initialises a convolution, uniformly within 1 / sqrt(inputs), and always the
    same: what the groups are must not depend on a run.

    Args:
        channels: of the images.

    Returns:
        As :func:`~dam_lightning.functional.log_variance.log_variance_features` takes them.
    """
    first, second = (_convolution(inputs, block) for block, inputs in enumerate((channels, _WIDTH)))
    return first, second


def _convolution(inputs: int, block: int) -> tuple[Tensor, Tensor]:
    generator = torch_generator("cpu", 0, "pseudo-domains/log-variance", 0, block)
    bound = 1 / math.sqrt(9 * inputs)
    weight = torch.empty(_WIDTH, inputs, 3, 3).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(_WIDTH).uniform_(-bound, bound, generator=generator)
    return weight, bias
