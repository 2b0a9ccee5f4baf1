"""How far pseudo-domains agree with the domains that the data really have."""

from collections.abc import Sequence
from typing import NamedTuple

from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

__all__ = ["DomainAgreement", "domain_agreement"]


class DomainAgreement(NamedTuple):
    """Two measures of agreement, and what they are measured on.

    Attributes:
        ari: adjusted Rand index (Hubert and Arabie, 1985): 1 for the same grouping, about 0 for a
            random one; may be a little below 0.
        nmi: mutual information, normalised by the mean of the two entropies: 1 for the same
            grouping, 0 for independent ones.
        table: (D, T) int64, images of each pseudo-domain (row) and true domain (column).
        names: of the T true domains.
    """

    ari: float
    nmi: float
    table: Tensor
    names: list[str]

    def markdown(self) -> str:
        """The table as Markdown, a line for each pseudo-domain."""
        header = ["pseudo-domain", *self.names]
        lines = [header, ["---:"] * len(header)]
        lines += [[str(number), *map(str, row)] for number, row in enumerate(self.table.tolist())]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def domain_agreement(
    pseudo_domains: Tensor, domains: Tensor, num_domains: int, names: Sequence[str]
) -> DomainAgreement:
    """Compare two groupings of the same images.

    Args:
        pseudo_domains: (N,) int64 in 0..D-1.
        domains: (N,) int64 in 0..T-1, the true domains.
        num_domains: D.
        names: of the T true domains.

    Returns:
        The measures and the table.

    Raises:
        ValueError: the two differ in length.
    """
    if pseudo_domains.shape != domains.shape or pseudo_domains.ndim != 1:
        raise ValueError(
            f"pseudo-domains {tuple(pseudo_domains.shape)} and domains {tuple(domains.shape)} must "
            "be two vectors of the same length"
        )
    pseudo_domains, domains = pseudo_domains.cpu(), domains.cpu()
    cells = (pseudo_domains * len(names) + domains).bincount(minlength=num_domains * len(names))
    return DomainAgreement(
        float(adjusted_rand_score(domains.numpy(), pseudo_domains.numpy())),
        float(normalized_mutual_info_score(domains.numpy(), pseudo_domains.numpy())),
        cells.view(num_domains, len(names)),
        list(names),
    )
