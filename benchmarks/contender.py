"""What is timed: work that can be run again and again, and that tells what it computed."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from dam_lightning.precision import Precision

__all__ = ["Contender"]


class Contender(ABC):
    """One side of a comparison.

    The n-th run of every contender of a task does the same work on the same draws.

    Attributes:
        precision: of its networks' forward passes.
        waits: whether a run may make the host wait for the device.
    """

    precision: Precision = "float32"
    waits: bool = True

    @abstractmethod
    def run(self) -> None:
        """Do the work once; this is what is timed."""

    @abstractmethod
    def outcome(self) -> dict[str, float]:
        """What the last run computed, by name, to compare with other contenders; not timed."""

    def labelled(self) -> AbstractContextManager[None]:
        """Within it, a profile of `run` has parts of it by name, as far as that is possible."""
        return nullcontext()
