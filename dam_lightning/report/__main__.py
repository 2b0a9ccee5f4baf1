"""``python -m dam_lightning.report LEDGER``: the report, or the queue, as Markdown."""

import argparse
import sys
from collections.abc import Sequence

from dam_lightning.files import written_beside
from dam_lightning.report.page import report
from dam_lightning.report.queue import queue
from dam_lightning.report.rows import read_ledger
from dam_lightning.report.runs import find_runs

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None: ``sys.argv``.

    Raises:
        SystemExit: with status 1 and one line on the standard error where the ledger cannot be read
            or the page not be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dam_lightning.report",
        description="Print what a ledger says beside what the paper prints, as Markdown.",
    )
    parser.add_argument("ledger", help="file to which test --model.ledger wrote")
    parser.add_argument(
        "--queue", action="store_true", help="print the commands still to run instead"
    )
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing")
    options = parser.parse_args(arguments)
    try:
        rows = read_ledger(options.ledger)
        runs = find_runs(rows)
        text = queue(runs) if options.queue else report(rows, runs)
        if options.output is None:
            sys.stdout.write(text)
        else:
            with written_beside(options.output) as beside:
                beside.write_text(text, encoding="utf-8", newline="\n")
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
