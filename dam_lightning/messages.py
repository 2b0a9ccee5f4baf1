"""What the command line says of bad input: one line, with what matters."""

import re
import textwrap
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["REFUSALS", "ArgumentParser", "one_line", "said_of"]

REFUSALS = (
    FloatingPointError,
    MisconfigurationException,
    ModuleNotFoundError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What is raised of bad input, where the message says all."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory"
    # More than can even be asked for.
    r"|Storage size calculation overflowed|integer multiplication overflow"
)
"""What a RuntimeError says, of which PyTorch has no class for most devices."""

# Not there where PyTorch was built without.
_LOST: type[Exception] | tuple[()] = getattr(torch.distributed, "DistError", ())

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes"
    r"|Subtypes: .*|Errors:|Expected a <class 'NoneType'>|Given value( type)?: .*"
)
"""Lines in which jsonargparse tells of types that nobody gave."""
_EXPECTED = re.compile(r"Expected a <class '(\w+)'>")
_NO_CLASS = re.compile(r"Expected a path but (\S+) either not accessible or invalid")


def said_of(error: Exception) -> str | None:
    """What to say of an error in one line; None: it may be a defect, and its place matters."""
    # Gloo, the backend of CPUs, has no class of errors of its own.
    if isinstance(error, _LOST) or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
        return (
            "another process of this run has ended, or does not answer; what it said before tells "
            f"why. ({one_line(str(error))})"
        )
    if _is_out_of_memory(error):
        # Python's own says nothing.
        reason = textwrap.shorten(one_line(str(error)) or "MemoryError", 200, placeholder=" ...")
        return (
            "out of memory: give a smaller --model.max_images, --data.batch_real or "
            f"--data.image_size, or a smaller network with --model.backbone_args. ({reason})"
        )
    if isinstance(error, KeyError) and "checkpoint contains only the model" in str(error):
        return (
            "the checkpoint has only the weights, with which no fit can go on: give the last.ckpt "
            "of a run's folder, or another that was not saved with save_weights_only"
        )
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return f"the checkpoint does not fit, or is damaged: {one_line(str(error))}"
    if isinstance(error, OverflowError):
        return f"a number that was given is too large: {one_line(str(error))}"
    return one_line(str(error)) if isinstance(error, REFUSALS) else None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def one_line(message: str) -> str:
    """A message without line breaks, and without the parser's account of what it tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not _NOISE.fullmatch(line)]
    types = dict.fromkeys(match[1] for match in map(_EXPECTED.fullmatch, kept) if match)
    if len(types) > 1:
        kept = [line for line in kept if not _EXPECTED.fullmatch(line)]
        kept.append(f"expected one of {', '.join(types)}")
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Part of an option's name is a mistake, and would be another option's one day.
        super().__init__(*args, allow_abbrev=False, **kwargs)

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
        line = one_line(message)
        given = {"model": "DM", "data": "PACS"}
        # One of ours or the user's, and not the base class that stands for none.
        told = r'key "(model|data)": .*? class_path .(?!lightning\.)([\w.]+)'
        for kind, path in re.findall(told, line):
            given[kind] = path.rpartition(".")[2]
        lists = (
            f"{prog} --help lists the options of Lightning, {prog} --model.help {given['model']} "
            f"and {prog} --data.help {given['data']} those of a class"
        )
        self.exit(2, f"{lists}\nerror: {line}\n")
