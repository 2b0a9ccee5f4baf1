"""Compiled functions: the same numbers, told about, and never in the way."""

import pickle

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config

from dam_lightning.compilation import Compiled, worth_compiling


def slope(x: Tensor, y: Tensor) -> Tensor:
    return (x.sin() * y).sum()


def stubborn(x: Tensor) -> Tensor:
    """Cannot be compiled as a whole: which way it goes is known to the host alone."""
    return x * 3 if x.sum() > 0 else x


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told and warned of."""
    lines: list[str] = []
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_info", lines.append)
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", lines.append)
    return lines


def test_it_computes_the_same_and_says_so(said: list[str]) -> None:
    compiled = Compiled(slope, "the slope")
    x, y = torch.randn(2, 5, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, y), slope(x, y))
    first, second = said
    assert "Compiling the slope" in first
    assert "Compiled the slope in" in second
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x, y), x)
    torch.testing.assert_close(gradient, x.detach().cos() * y)
    assert len(said) == 3


def test_more_shapes_than_pytorch_keeps_of_one_function(said: list[str]) -> None:
    compiled = Compiled(slope, "the slope")
    with dynamo_config.patch(recompile_limit=2):
        for length in range(1, 5):
            x = torch.randn(length)
            torch.testing.assert_close(compiled(x, x), slope(x, x))
    assert len([line for line in said if line.startswith("Compiled")]) == 4


def test_what_cannot_be_compiled_runs_as_it_is(said: list[str]) -> None:
    compiled = Compiled(stubborn, "the stubborn one")
    x = torch.tensor([1.0, 2.0])
    for _ in range(2):
        assert compiled(x).tolist() == [3.0, 6.0]
    _, second = said
    assert "Without compilation of the stubborn one" in second


@pytest.mark.usefixtures("said")
def test_errors_are_those_of_the_function() -> None:
    """And say nothing of whether it can be compiled."""
    compiled = Compiled(slope, "the slope")
    with pytest.raises(RuntimeError, match="size of tensor"):
        compiled(torch.ones(2), torch.ones(3))
    assert compiled.enabled


def test_a_fallback_that_is_better_uncompiled(said: list[str]) -> None:
    compiled = Compiled(stubborn, "the stubborn one", fallback=lambda x: 3.5 * x)
    assert compiled(torch.ones(1)).tolist() == [3.5]
    assert not compiled.enabled
    assert "Without compilation" in said[-1]
    off = Compiled(stubborn, "it", enabled=False, fallback=lambda x: 3.5 * x)
    assert off(torch.ones(1)).tolist() == [3.5]


def test_too_little_memory_is_for_the_caller_to_mend(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise torch.OutOfMemoryError("too little")

    compiled, x = Compiled(slope, "the slope"), torch.ones(2)
    with monkeypatch.context() as small:
        small.setattr("dam_lightning.compilation._rehearse", scarce)
        with pytest.raises(torch.OutOfMemoryError):
            compiled(x, x)
    assert compiled.enabled
    torch.testing.assert_close(compiled(x, x), slope(x, x))
    assert "Compiled the slope" in said[-1]


@pytest.mark.usefixtures("said")
def test_compiling_draws_nothing() -> None:
    """Nor does it leave anything in the arguments."""
    compiled = Compiled(lambda x: (x * torch.rand_like(x)).sum(), "the noise")
    x = torch.ones(3, requires_grad=True)
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        compiled(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert x.grad is None


def test_switched_off(said: list[str]) -> None:
    x = torch.tensor([1.0, 2.0])
    assert Compiled(stubborn, "it", enabled=False)(x).tolist() == [3.0, 6.0]
    assert not said


def test_it_can_be_handed_to_another_process() -> None:
    compiled = Compiled(slope, "the slope")
    x = torch.randn(3)
    compiled(x, x)
    torch.testing.assert_close(pickle.loads(pickle.dumps(compiled))(x, x), slope(x, x))


@pytest.mark.parametrize(("steps", "worth"), [(2, False), (999, False), (1000, True), (-1, True)])
def test_worth_compiling(steps: int, worth: bool) -> None:
    assert worth_compiling(steps) == worth
