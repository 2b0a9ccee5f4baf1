"""Functions that are compiled where that is possible, and say so."""

import time
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.utils import _pytree as pytree

__all__ = ["Compiled", "worth_compiling"]

Result = TypeVar("Result")

_WORTH_STEPS = 1000
"""Steps from which compilation, up to a minute on a CPU, costs less than it saves."""


def worth_compiling(steps: int) -> bool:
    """Whether a run of so many steps is long enough to compile for; -1 is a run without end."""
    return steps < 0 or steps >= _WORTH_STEPS


class Compiled(Generic[Result]):
    """A function that is compiled by its first call with arguments of a kind.

    It says that it compiles, and how long that took. Where compilation is impossible it warns, and
    calls the function as it is from then on. On CUDA devices the compiled function is captured in a
    graph, so that all its kernels are one launch.

    Args:
        function: of tensors, and of lists or tuples of them. It may be differentiated. Whatever
            else it takes or depends on must stay as it was at the first call; but parameters of
            modules may change their values.
        what: what it computes, for messages, such as ``"the embedding"``.
        enabled: False: never compiled.
        recompute: where it is differentiated, keep the results of convolutions and matrix products
            alone, and compute the rest a second time. Without it more is kept than a CPU can read
            again in the time of computing it.
        fallback: computes the same, and is called where nothing is compiled; None: ``function``.

    Attributes:
        enabled: whether it is compiled; False from when that has turned out to be impossible.

    Raises:
        torch.OutOfMemoryError: by a call, if the memory is too small; a later one compiles again.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        what: str,
        *,
        enabled: bool = True,
        recompute: bool = False,
        fallback: Callable[..., Result] | None = None,
    ) -> None:
        self._function = function
        self._what = what
        self.enabled = enabled
        self._fallback = fallback or function
        self._recompute = recompute
        self._compiled: dict[Hashable, Callable[..., Result]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned: what is compiled stays behind."""
        return {**self.__dict__, "_compiled": {}}

    def __call__(self, *arguments: Any) -> Result:
        """What the function makes of the arguments."""
        if not self.enabled:
            return self._fallback(*arguments)
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        kind = _kind(tensors)
        compiled = self._compiled.get(kind)
        if compiled is None:
            return self._first(kind, tensors, arguments)
        return _kept(compiled(*arguments))

    def _first(self, kind: Hashable, tensors: list[Tensor], arguments: tuple[Any, ...]) -> Result:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor.ndim > 1)
        if not self._compiled:
            rank_zero_info(
                f"Compiling {self._what}: seconds to a minute, once for each shape of its inputs"
            )
        start = time.perf_counter()
        compiled = _compile(self._function, tensors[0].device)
        try:
            # Decided when it is compiled.
            with functorch_config.patch(aggressive_recomputation=self._recompute):
                _rehearse(compiled, arguments, tensors[0].device)
        except torch.OutOfMemoryError:
            # Uncompiled it takes no less; whoever asked may ask for less.
            raise
        # Whatever a compiler or its absence raises.
        except Exception as error:
            # What is wrong with the arguments is raised here, and says nothing of compiling.
            result = self._fallback(*arguments)
            reason = str(error).strip().partition("\n")[0]
            rank_zero_warn(f"Without compilation of {self._what}, which is slower: {reason}")
            self.enabled = False
            return result
        seconds = time.perf_counter() - start
        rank_zero_info(f"Compiled {self._what} in {seconds:.1f} s, for {shapes}")
        self._compiled[kind] = compiled
        return _kept(compiled(*arguments))


def _compile(function: Callable[..., Result], device: torch.device) -> Callable[..., Result]:
    def call(*arguments: Any) -> Result:
        return function(*arguments)

    # PyTorch counts what it compiled by the code object, and stops after eight; each of ours is
    # one of its own.
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[..., Result] = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
    return compiled


def _kind(tensors: list[Tensor]) -> Hashable:
    """All that makes PyTorch compile anew."""
    device = tensors[0].device.type
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        tuple((t.shape, t.dtype, t.device, t.requires_grad, t.stride()) for t in tensors),
    )


def _kept(result: Result) -> Result:
    """Results that outlive the next call, which a captured graph would overwrite."""
    kept: Result = pytree.tree_map_only(
        Tensor, lambda tensor: tensor.clone() if tensor.is_cuda else tensor, result
    )
    return kept


def _rehearse(
    compiled: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device
) -> None:
    """Run it, and back, until nothing is left to be compiled or captured; nothing is kept.

    A backward pass is compiled when it is first needed, and a graph is captured at the second run,
    where no one could fall back any more.
    """
    cuda = device.type == "cuda"
    # What is drawn here must not be missing later.
    with torch.random.fork_rng([device] if cuda else []):
        for _ in range(3 if cuda else 1):
            own = pytree.tree_map_only(Tensor, _as_leaf, arguments)
            inputs = [leaf for leaf in pytree.tree_leaves(own) if _has_gradient(leaf)]
            outputs = [leaf for leaf in pytree.tree_leaves(compiled(*own)) if _has_gradient(leaf)]
            if inputs and outputs:
                total = torch.stack([output.float().sum() for output in outputs]).sum()
                torch.autograd.grad(total, inputs, allow_unused=True)


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
