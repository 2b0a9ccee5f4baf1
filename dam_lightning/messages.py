"""What the command line says of bad input: one line, with what matters."""

import re
from typing import NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["REFUSALS", "ArgumentParser", "lost_process", "one_line"]

REFUSALS = (
    FloatingPointError,
    MisconfigurationException,
    ModuleNotFoundError,
    OSError,
    TypeError,
    ValueError,
)
"""What is raised of bad input, where the message says all. Anything else may be a defect."""

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes"
    r"|Subtypes: .*|Errors:|Expected a <class 'NoneType'>|Given value( type)?: .*"
)
"""Lines in which jsonargparse tells of types that nobody gave."""
_NO_CLASS = re.compile(r"Expected a path but (\S+) either not accessible or invalid")


def lost_process(error: RuntimeError) -> str | None:
    """What to say of an error in communication, which tells that another process is gone.

    Args:
        error: any.

    Returns:
        A sentence; None: it is another error.
    """
    # Gloo, the backend of CPUs, has no class of errors of its own.
    if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
        return None
    return (
        "another process of this run has ended, or does not answer; what it said before tells why. "
        f"({one_line(str(error))})"
    )


def one_line(message: str) -> str:
    """A message without line breaks, and without the parser's account of what it tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not _NOISE.fullmatch(line)]
    text = " ".join(kept) or " ".join(message.split())
    unknown = _NO_CLASS.search(text)
    if unknown:
        key = text.partition(":")[0]
        return (
            f"{key}: there is no class or file {unknown[1]}: give the name of a class of this "
            "package, or the dotted path of your own"
        )
    return text


class ArgumentParser(LightningArgumentParser):
    """Lightning's parser, saying in one line what is wrong instead of listing every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2.

        Args:
            message: what is wrong.
            ex: where it was noticed.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        if " " not in prog:
            prog += " fit"
        lists = (
            f"{prog} --help lists the options of Lightning, {prog} --model.help DM and "
            f"{prog} --data.help PACS those of a class"
        )
        self.exit(2, f"{lists}\nerror: {one_line(message)}\n")
