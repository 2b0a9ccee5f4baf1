"""How far each way to make pseudo-domains finds the domains that the data really have.

``python -m benchmarks.pseudo_domains --data PACS --root DIR --out DIR`` prints the agreement (ARI,
NMI) and the table of pseudo-domains and true domains for low-frequency amplitude and log-variance
features, each sorted by the mean and clustered by k-means, and for random groups. For each of these
a picture is left in the folder: examples of every pseudo-domain, the same figures, the scores.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import dam_lightning.data
from dam_lightning.callbacks.drawing_domains import pseudo_domain_picture
from dam_lightning.data import ResidentDataModule
from dam_lightning.data.agreement import DomainAgreement, domain_agreement

__all__ = ["main", "report"]

LABELLINGS = (
    ("fft", "mean_sort"),
    ("fft", "k_means"),
    ("log_variance", "mean_sort"),
    ("log_variance", "k_means"),
    ("random", "mean_sort"),
)
"""``pseudo_labels`` and ``pseudo_grouping`` of the data module."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


class Result(NamedTuple):
    """One way to make pseudo-domains, measured.

    Attributes:
        name: ``labels_grouping``, of the picture too.
        description: in words.
        agreement: with the true domains.
    """

    name: str
    description: str
    agreement: DomainAgreement


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None: ``sys.argv``.
    """
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    results = []
    try:
        for result in _measured(options):
            print(f"{result.name} done", file=sys.stderr, flush=True)
            results.append(result)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.pseudo_domains: {error}")
    print(report(results))


def report(results: Sequence[Result]) -> str:
    """The figures as Markdown: one table of all, and one of the images of each."""
    lines = ["| pseudo-domains | ARI | NMI |", "|---|---:|---:|"]
    for result in results:
        found = result.agreement
        lines.append(f"| {result.description} | {found.ari:z.3f} | {found.nmi:z.3f} |")
    for result in results:
        lines += ["", f"**{result.description}**", "", result.agreement.markdown()]
    return "\n".join(lines)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m benchmarks.pseudo_domains",
        description="Compare pseudo-domains with the true domains of a dataset.",
    )
    parser.add_argument("--data", required=True, help="data module, e.g. PACS or Digits")
    parser.add_argument("--root", help="folder of the dataset, where it has one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--num-domains", type=int, help="pseudo-domains; default: as many as true domains"
    )
    parser.add_argument("--scope", default="global", choices=("global", "class"))
    parser.add_argument("--fft-ratio", type=float, default=0.1)
    parser.add_argument("--fft-window", default="half_width", choices=("half_width", "area"))
    parser.add_argument("--fft-log", action="store_true")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--cache-dir")
    options = parser.parse_args(arguments)
    made = getattr(dam_lightning.data, options.data, None)
    if not (isinstance(made, type) and issubclass(made, ResidentDataModule)):
        parser.error(f"--data: dam_lightning.data has no data module {options.data!r}")
    options.data = made
    return options


def _measured(options: argparse.Namespace) -> Iterator[Result]:
    given: dict[str, Any] = {} if options.root is None else {"root": options.root}
    for labels, grouping in LABELLINGS:
        data: ResidentDataModule = options.data(
            pseudo_labels=labels,
            pseudo_grouping=grouping,
            pseudo_scope=options.scope,
            fft_ratio=options.fft_ratio,
            fft_window=options.fft_window,
            fft_log=options.fft_log,
            split_seed=options.split_seed,
            cache_dir=options.cache_dir,
            **given,
        )
        data.prepare_data()
        data.setup("fit")
        if len(data.domain_names) < 2:
            raise ValueError("the data have a single domain: there is nothing to compare with")
        count = options.num_domains or len(data.domain_names)
        data.setup_domains(count)
        assert data.pseudo_domains is not None
        labelling = data.pseudo_labelling
        picture = pseudo_domain_picture(
            data.train.images,
            data.pseudo_domain_scores,
            data.pseudo_domains,
            data.train.domains,
            data.domain_names,
            labelling.score_name,
            labelling.description,
        )
        name = f"{labels}_{grouping}" if labels != "random" else labels
        options.out.mkdir(parents=True, exist_ok=True)
        picture.save(options.out / f"{name}.png")
        yield Result(
            name,
            labelling.description,
            domain_agreement(data.pseudo_domains, data.train.domains, count, data.domain_names),
        )


if __name__ == "__main__":
    main()
