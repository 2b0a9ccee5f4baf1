"""What is timed: work that can be run again and again, and that tells what it computed."""

from abc import ABC, abstractmethod

__all__ = ["Contender"]


class Contender(ABC):
    """One side of a comparison.

    The n-th run of every contender of a task does the same work on the same draws.
    """

    @abstractmethod
    def run(self) -> None:
        """Do the work once; this is what is timed."""

    @abstractmethod
    def outcome(self) -> dict[str, float]:
        """What the last run computed, by name, to compare with other contenders; not timed."""
