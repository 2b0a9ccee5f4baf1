"""SIGTERM while networks are trained outside the Trainer's steps: they end between two of theirs.

A signal's handler must not raise there. Whether arguments are those a function was compiled for,
PyTorch asks Python functions; what is raised in one of them it drops, so that the training goes on,
or fails with an error of the compiler's.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["ask_to_end", "end_if_asked", "listen_to_sigterm"]

_asked = False


def listen_to_sigterm(
    then: Callable[[], object] | None = None,
) -> Callable[[int, Any], Any] | int | None:
    """From now on SIGTERM is noted, for `end_if_asked`. Only the main thread may call this.

    Args:
        then: what the handler does besides.

    Returns:
        The handler before, as `signal.signal` does.
    """
    global _asked
    _asked = False

    def note(*_: Any) -> None:
        ask_to_end()
        if then is not None:
            then()

    return signal.signal(signal.SIGTERM, note)


def ask_to_end() -> None:
    """Note a SIGTERM, for `end_if_asked`, whoever has heard it."""
    global _asked
    _asked = True


def end_if_asked() -> None:
    """Called between two steps.

    Raises:
        SIGTERMException: there was a SIGTERM, and this is the main thread.
    """
    global _asked
    if _asked and threading.current_thread() is threading.main_thread():
        _asked = False
        raise SIGTERMException
