"""The benchmarks in parts that fit into ten minutes of a GPU each, in the order of their worth.

``python -m benchmarks.gpu PART --output FOLDER`` is `python -m benchmarks` with the options of a
part, and takes further ones. ``python -m benchmarks.report FOLDER/results.json ...`` puts the
results of all parts together.
"""

import sys
from collections.abc import Sequence

from benchmarks.__main__ import main as run

__all__ = ["PARTS", "main"]

_STEPS = "DM step,DM+DAM step,{},MTT step,MTT+DAM step"
_TIMED = (
    *("--tasks", _STEPS.format("DC iteration,DC+DAM iteration")),
    "--no-variants",
    *("--scaling", "none"),
)

PARTS = {
    # What is computed is right, and the host does not wait.
    "checks": (
        "--check",
        *("--cases", "cifar10_ipc1,cifar10_ipc10"),
        *("--tasks", _STEPS.format("DC step,DC+DAM step") + ",experts,evaluation"),
        *("--batch-real", "64", "--inner-epochs", "2", "--epochs", "5"),
    ),
    "cifar10": ("--cases", "cifar10_ipc10,cifar10_ipc1", *_TIMED),
    "pacs": ("--cases", "pacs_ipc10,pacs_ipc1", *_TIMED),
    "rest": (
        *("--cases", "cifar10_ipc10,pacs_ipc10"),
        *("--tasks", "whole evaluation,experts,evaluation,evaluation without DSA"),
        "--no-variants",
    ),
}
"""Options of each part."""


def main(arguments: Sequence[str]) -> int:
    """Run a part.

    Args:
        arguments: of the command line, without the program's name: the part, and options that come
            after its own, as of `benchmarks.__main__.main`.

    Returns:
        The exit status, 2 where there is no such part.
    """
    if not arguments or arguments[0] not in PARTS:
        print(f"python -m benchmarks.gpu: give a part: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    part, *others = arguments
    # No task is begun that would not end within ten minutes.
    return run(["--device", "cuda", "--minutes", "8", *PARTS[part], *others])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
