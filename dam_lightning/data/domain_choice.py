"""Which domains are trained on and which are tested on."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dam_lightning.data.resident import Split

__all__ = ["DomainChoice"]


class DomainChoice(NamedTuple):
    """The four settings of the paper, by which domains of a dataset take part.

    All domains; one domain (``train`` and ``test`` name it); all for training, one for testing
    (``test`` names it); and one left out of training, which is all that is tested on
    (``left_out``).
    """

    train: Sequence[str] | None
    """Domains whose training and validation images are used; None: all."""
    test: Sequence[str] | None
    """Domains whose test images are used; None: all."""
    left_out: str | None
    """The domain that is kept from training, instead of the other two."""
    left_out_part: Literal["all", "test"]
    """Whether all of its images are tested on, or those of its test split."""

    def trained_on(self, domains: Tensor, names: Sequence[str]) -> Tensor:
        """The training images that are used: (N,) int64 domains to (N,) bool."""
        if self.left_out is not None:
            return domains != names.index(self.left_out)
        return _among(domains, names, self.train)

    def apply(self, splits: Mapping[str, Split], names: Sequence[str]) -> dict[str, Split]:
        """Take what is used out of the splits ``train``, ``test`` and, where there is one, ``val``.

        Domains keep their numbers.

        Args:
            splits: of all domains.
            names: of the domains.

        Raises:
            ValueError: a domain has another name, the choices contradict each other, or they leave
                a split without images.
        """
        self._check(names)
        chosen = {
            name: split.subset(self.trained_on(split.domains, names))
            for name, split in splits.items()
            if name != "test"
        }
        tested = [self.left_out] if self.left_out is not None else self.test
        parts: tuple[str, ...] = ("test",)
        if self.left_out is not None and self.left_out_part == "all":
            parts = tuple(splits)
        chosen["test"] = _joined(
            [splits[name].subset(_among(splits[name].domains, names, tested)) for name in parts]
        )
        for name in ("train", "test"):
            if len(splits[name]) and not len(chosen[name]):
                raise ValueError(
                    f"the {name} split has no images of "
                    f"{', '.join((self.train if name == 'train' else tested) or names)}: choose "
                    "other domains"
                )
        return chosen

    def _check(self, names: Sequence[str]) -> None:
        if self.left_out_part not in ("all", "test"):
            raise ValueError(f"left_out_part must be all or test, got {self.left_out_part!r}")
        if self.left_out is not None and (self.train, self.test) != (None, None):
            raise ValueError(
                "left_out_domain says what is trained and tested on: leave out train_domains and "
                "test_domains"
            )
        if self.left_out_part != "all" and self.left_out is None:
            raise ValueError("left_out_part is of left_out_domain: give that too")
        for option, wanted in (
            ("train_domains", self.train),
            ("test_domains", self.test),
            ("left_out_domain", None if self.left_out is None else [self.left_out]),
        ):
            if wanted is None:
                continue
            unknown = [name for name in wanted if name not in names]
            if unknown or not wanted:
                what = f"there is no domain {unknown[0]!r}" if unknown else f"{option} is empty"
                raise ValueError(f"{what}: give {option} of {', '.join(names)}")
        if self.left_out is not None and len(names) < 2:
            raise ValueError(
                f"the only domain, {names[0]!r}, cannot be left out: leave out left_out_domain"
            )


def _among(domains: Tensor, names: Sequence[str], wanted: Sequence[str] | None) -> Tensor:
    if wanted is None:
        return torch.ones_like(domains, dtype=torch.bool)
    return torch.isin(domains, torch.tensor([names.index(name) for name in wanted]))


def _joined(splits: Sequence[Split]) -> Split:
    """One split after the other; a single one is not copied."""
    if len(splits) == 1:
        return splits[0]
    return Split(
        torch.cat([split.images for split in splits]),
        torch.cat([split.labels for split in splits]),
        torch.cat([split.domains for split in splits]),
        [path for split in splits for path in split.paths],
    )
