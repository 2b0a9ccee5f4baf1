"""The formulas: tensors in, tensors out, no state, real arguments before synthetic ones."""

from dam_lightning.functional.augmentation import (
    DSA,
    OPERATIONS,
    AugmentationParameters,
    augment,
    augmentation_parameters,
    strategy_operations,
)
from dam_lightning.functional.masks import domain_views, domain_weights
from dam_lightning.functional.matching import (
    distribution_matching_loss,
    gradient_matching_loss,
    trajectory_matching_loss,
)
from dam_lightning.functional.pseudo_domains import low_frequency_amplitude, rank_groups
from dam_lightning.functional.whitening import (
    Whitening,
    same_whitening,
    unwhiten,
    whiten,
    zca_matrix,
)

__all__ = [
    "DSA",
    "OPERATIONS",
    "AugmentationParameters",
    "Whitening",
    "augment",
    "augmentation_parameters",
    "distribution_matching_loss",
    "domain_views",
    "domain_weights",
    "gradient_matching_loss",
    "low_frequency_amplitude",
    "rank_groups",
    "same_whitening",
    "strategy_operations",
    "trajectory_matching_loss",
    "unwhiten",
    "whiten",
    "zca_matrix",
]
