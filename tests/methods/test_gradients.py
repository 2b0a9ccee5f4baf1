"""Gradients computed beforehand, or a second time, are the gradients."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from dam_lightning.methods.gradients import carry_gradient, recomputed


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_a_carried_gradient_goes_on_like_any_other() -> None:
    """Weighted, added, and back through what the tensors were made from."""
    root = numbers(4).requires_grad_()

    def made(root: Tensor) -> tuple[Tensor, Tensor]:
        return root.sin(), root.exp().reshape(2, 2)

    first, second = made(root)
    expected = 3 * ((first**3).sum() + (second**2).sum()) + root.sum()
    (wanted,) = torch.autograd.grad(expected, root)

    first, second = made(root)
    value = ((first**3).sum() + (second**2).sum()).detach()
    gradients = [3 * first.detach() ** 2, 2 * second.detach()]
    loss = 3 * carry_gradient(value, gradients, [first, second]) + root.sum()
    (found,) = torch.autograd.grad(loss, root)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_a_carried_value_is_a_copy() -> None:
    value = torch.ones(())
    tensor = torch.zeros(2, requires_grad=True)
    carried = carry_gradient(value, [torch.ones(2)], [tensor])
    carried = carried + 1
    assert float(value) == 1
    carried.backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [1, 1]


def inner_gradient(images: Tensor) -> Tensor:
    """A gradient with respect to something else, as DC takes it by ``torch.func``."""
    weights = numbers(3, 3, seed=1)

    def loss(weights: Tensor) -> Tensor:
        return (images @ weights).tanh().square().sum()

    found: Tensor = grad(loss)(weights)
    return found


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cube": lambda x: (x**3).sum(dim=0),
    "torch.func": inner_gradient,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_recomputed_is_the_function(name: str) -> None:
    function = FUNCTIONS[name]
    tensor = numbers(5, 3).requires_grad_()
    expected, found = function(tensor), recomputed(function, tensor)
    assert torch.equal(expected, found)
    upstream = numbers(*expected.shape, seed=2)
    (wanted,) = torch.autograd.grad(expected, tensor, upstream)
    (gradient,) = torch.autograd.grad(found, tensor, upstream)
    assert float(wanted.abs().max()) > 0
    assert torch.equal(wanted, gradient)


def test_pieces_add_up_to_the_whole() -> None:
    tensor = numbers(6, 3).requires_grad_()
    whole = inner_gradient(tensor)
    pieces = [recomputed(inner_gradient, piece) for piece in tensor.split(2)]
    total = torch.stack(pieces).sum(dim=0)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    (wanted,) = torch.autograd.grad(whole.square().sum(), tensor)
    (gradient,) = torch.autograd.grad(total.square().sum(), tensor)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_nothing_is_kept_until_backward() -> None:
    """Neither after the first time, nor of one piece while another is at work."""
    alive: list[weakref.ref[Tensor]] = []
    most: list[int] = []

    def function(tensor: Tensor) -> Tensor:
        intermediate = tensor.exp()
        alive.append(weakref.ref(intermediate))
        most.append(sum(reference() is not None for reference in alive))
        return (intermediate * intermediate).sum()

    tensor = numbers(3, 4).requires_grad_()
    total = torch.stack([recomputed(function, row) for row in tensor]).sum()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
    total.backward()
    assert len(alive) == 6
    assert max(most) == 1
    assert tensor.grad is not None
    torch.testing.assert_close(tensor.grad, 2 * (2 * tensor.detach()).exp())


def test_without_a_gradient_it_runs_once() -> None:
    calls: list[bool] = []

    def function(tensor: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return tensor * 2

    assert not recomputed(function, numbers(2)).requires_grad
    with torch.no_grad():
        assert not recomputed(function, numbers(2).requires_grad_()).requires_grad
    assert len(calls) == 2


def test_the_second_time_is_under_the_same_autocast() -> None:
    """Backward is usually called outside."""
    seen: list[tuple[bool, torch.dtype]] = []
    weights = numbers(3, 3, seed=1).float()

    def function(tensor: Tensor) -> Tensor:
        result = tensor @ weights
        seen.append((torch.is_autocast_enabled("cpu"), result.dtype))
        return result.float()

    tensor = numbers(2, 3).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = recomputed(function, tensor)
    inside.sum().backward()
    assert seen == [(True, torch.bfloat16)] * 2
    outside = recomputed(function, tensor)
    with torch.autocast("cpu", torch.bfloat16):
        outside.sum().backward()
    assert seen[2:] == [(False, torch.float32)] * 2


def test_the_second_time_draws_the_same_numbers() -> None:
    """And leaves the generator where it was."""
    drawn: list[Tensor] = []

    def function(tensor: Tensor) -> Tensor:
        drawn.append(torch.rand(3))
        return (tensor * drawn[-1]).sum()

    tensor = torch.ones(2, 3, requires_grad=True)
    total = recomputed(function, tensor[0]) + recomputed(function, tensor[1])
    torch.rand(5)
    before = torch.get_rng_state()
    total.backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert tensor.grad is not None
    assert torch.equal(tensor.grad, torch.stack(drawn[:2]))
    assert not torch.equal(drawn[0], drawn[1])
