"""The plain loops of gradient matching, trajectory matching and experts, from first principles."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from . import augmentation, convnet, dc, dm, experts, mtt


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exactly(values: object) -> Tensor:
    """In float64 from the start: through float32, 0.7 would lose digits."""
    return torch.tensor(values, dtype=torch.float64)


def smooth_network(num_classes: int, seed: int, norm: str = "instance") -> convnet.ConvNet:
    """Without kinks, so that finite differences are exact enough; 2 channels of 4x4 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return convnet.ConvNet(2, num_classes, 3, 1, (4, 4), norm, activation="sigmoid").double()


def linear_network(num_inputs: int, num_classes: int, seed: int) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, num_classes, bias=False)).double()
    with torch.no_grad():
        network[1].weight.copy_(pictures(num_classes, num_inputs, seed=seed) * 0.5)
    return network


def softmax_gradient(weight: np.ndarray, images: Tensor, labels: Sequence[int]) -> np.ndarray:
    """Of the mean cross-entropy of a linear network: (p - onehot)^T x / B."""
    x = images.flatten(1).numpy()
    p = np.exp(x @ weight.T)
    p = p / p.sum(axis=1, keepdims=True)
    return (p - np.eye(len(weight))[list(labels)]).T @ x / len(x)


def orders(epochs: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator) for _ in range(epochs)]


def per_image(steps: int, count: int, seed: int) -> list[mtt.BatchAugmentation]:
    generator = np.random.default_rng(seed)
    return [
        (augmentation.OPERATIONS[(k + seed) % 6], generator.random((count, 3)).tolist())
        for k in range(steps)
    ]


def agrees(
    function: Callable[[Tensor], float], at: Tensor, gradient: Tensor, tolerance: float = 1e-6
) -> None:
    """Central differences at a few entries spread over ``at``."""
    assert gradient.shape == at.shape
    assert gradient.abs().max() > 1e-6
    for flat in range(0, at.numel(), max(1, at.numel() // 7)):
        index = tuple(int(i) for i in np.unravel_index(flat, tuple(at.shape)))
        slope = mtt.central_difference(function, at, index, 1e-5)
        assert math.isclose(
            slope, float(gradient[index]), rel_tol=tolerance, abs_tol=tolerance * 1e-3
        )


def test_central_difference_of_a_cube() -> None:
    at = torch.tensor([2.0, 3.0], dtype=torch.float64)
    slope = mtt.central_difference(lambda x: float((x**3).sum()), at, (1,), 1e-4)
    assert math.isclose(slope, 27.0, rel_tol=1e-6)
    slope = mtt.central_difference(lambda x: float(x**2), exactly(3.0), (), 1e-4)
    assert math.isclose(slope, 6.0, rel_tol=1e-6)
    assert at.tolist() == [2.0, 3.0]


def test_gradient_distances_of_hand_computed_numbers() -> None:
    linear = exactly([[3.0, 4.0], [1.0, 0.0]])
    other = exactly([[4.0, 3.0], [0.0, 2.0]])
    # Rows: cosine 24 / 25 and 0.
    expected = 1 - 24 / (25 + 1e-6) + 1
    assert math.isclose(dc.layerwise_cosine([linear], [other]), expected, rel_tol=1e-12)
    # A convolution (O=1, I=1, 1, 2) has one row, a layer norm (C=2, H=1, W=2) has two.
    convolution, its_other = linear[:1].reshape(1, 1, 1, 2), other[:1].reshape(1, 1, 1, 2)
    expected_row = 1 - 24 / (25 + 1e-6)
    assert math.isclose(dc.layerwise_cosine([convolution], [its_other]), expected_row)
    norm, its_other_norm = linear.reshape(2, 1, 2), other.reshape(2, 1, 2)
    assert math.isclose(dc.layerwise_cosine([norm], [its_other_norm]), expected, rel_tol=1e-12)
    # The constant keeps rows of zeros at distance 1; tiny rows feel it.
    assert dc.layerwise_cosine([linear * 0], [other]) == 2
    tiny = exactly([[1e-3]])
    assert math.isclose(dc.layerwise_cosine([tiny], [tiny]), 0.5, rel_tol=1e-9)

    bias, other_bias = exactly([1.0, 2.0]), exactly([3.0, 0.0])
    both, others = [linear, bias], [other, other_bias]
    assert math.isclose(dc.layerwise_cosine(both, others), expected, rel_tol=1e-12)
    assert dc.mse(both, others) == 1 + 1 + 1 + 4 + 4 + 4
    # 12 + 12 + 0 + 0 + 3 + 0 = 27; lengths sqrt(26 + 5) and sqrt(29 + 9)
    assert math.isclose(
        dc.cos(both, others), 1 - 27 / (math.sqrt(31) * math.sqrt(38) + 1e-6), rel_tol=1e-12
    )


@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse"])
def test_dc_losses_of_linear_networks_by_hand(metric: str) -> None:
    """Labels are group numbers; the domain loss takes every view of its domain."""
    images, logits = pictures(4, 1, 2, 2), pictures(4, 3, 1, 2, 2, seed=1) * 0.1
    real_c, real_d = pictures(2, 5, 1, 2, 2, seed=2), pictures(3, 6, 1, 2, 2, seed=3)
    class_network, domain_network = linear_network(4, 2, seed=4), linear_network(4, 3, seed=5)
    networks = class_network, domain_network
    result = dc.dc_step(
        images, 2, logits, 0.3, 0.1, *networks, list(real_c), list(real_d), metric=metric
    )

    def distance(weight: np.ndarray, real: Tensor, synthetic: Tensor, group: int) -> float:
        a = softmax_gradient(weight, real, [group] * len(real))
        b = softmax_gradient(weight, synthetic, [group] * len(synthetic))
        if metric == "mse":
            return ((a - b) ** 2).sum()
        rows = zip(a, b, strict=True)
        return sum(1 - p @ q / (np.linalg.norm(p) * np.linalg.norm(q) + 1e-6) for p, q in rows)

    weight = class_network[1].weight.detach().numpy()
    expected = sum(distance(weight, real_c[c], images[2 * c : 2 * c + 2], c) for c in range(2))
    assert math.isclose(result.loss_class, expected, rel_tol=1e-10)
    weight = domain_network[1].weight.detach().numpy()
    alpha = torch.softmax(logits / 0.1, dim=1)
    expected = sum(distance(weight, real_d[d], images * alpha[:, d], d) for d in range(3))
    assert math.isclose(result.loss_domain, expected, rel_tol=1e-10)


@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse", "cos"])
def test_dc_gradients_are_the_slopes(metric: str) -> None:
    images, logits = pictures(4, 2, 4, 4), pictures(4, 3, 2, 4, 4, seed=1) * 0.1
    networks = smooth_network(2, seed=1), smooth_network(3, seed=2)
    real_c, real_d = list(pictures(2, 5, 2, 4, 4, seed=2)), list(pictures(3, 5, 2, 4, 4, seed=3))
    chosen: list[dm.Augmentation] = [
        ("color", (0.2, 0.6, 0.7)),
        ("crop", (0.9, 0.1, 0.5)),
        ("rotate", (0.1, 0.5, 0.5)),
    ]

    def step(images: Tensor, logits: Tensor | None) -> dm.StepResult:
        return dc.dc_step(
            images,
            2,
            logits,
            0.3,
            0.5,
            *networks,
            real_c,
            real_d,
            chosen[:2],
            chosen,
            metric=metric,
        )

    def total(result: dm.StepResult) -> float:
        return float(result.loss_class + 0.3 * result.loss_domain)

    result = step(images, logits)
    assert result.grad_logits is not None
    agrees(lambda x: total(step(x, logits)), images, result.grad_images)
    agrees(lambda z: total(step(images, z)), logits, result.grad_logits)

    base = step(images, None)
    assert base.loss_class == result.loss_class
    assert base.loss_domain == 0
    assert base.grad_logits is None
    agrees(lambda x: total(step(x, None)), images, base.grad_images)


def test_dc_augments_real_and_synthetic_images_alike() -> None:
    images, real = pictures(2, 2, 4, 4), pictures(2, 5, 2, 4, 4, seed=1)
    network = smooth_network(2, seed=0)
    chosen: list[dm.Augmentation] = [("flip", (0.1, 0.0, 0.0)), ("color", (0.9, 0.3, 0.2))]
    result = dc.dc_step(
        images, 1, None, 0.0, 0.1, network, None, list(real), class_augmentation=chosen
    )
    changed = [augmentation.apply(images[c : c + 1], *chosen[c]) for c in range(2)]
    changed_real = [augmentation.apply(real[c], *chosen[c]) for c in range(2)]
    plain = dc.dc_step(torch.cat(changed), 1, None, 0.0, 0.1, network, None, changed_real)
    assert result.loss_class == plain.loss_class

    logits, tellers = pictures(2, 2, 2, 4, 4, seed=2) * 0.1, smooth_network(2, seed=5)
    both = chosen, chosen[::-1]
    arguments = (images, 1, logits, 0.3, 0.1, network, tellers, list(real), list(real))
    loss = dc.dc_step(*arguments, *both).loss_domain
    views = (images * alpha for alpha in torch.softmax(logits / 0.1, dim=1).unbind(1))
    expected = 0.0
    for d, (view, its_real) in enumerate(zip(views, real, strict=True)):
        changed_pair = [augmentation.apply(x, *chosen[1 - d]) for x in (its_real, view)]
        alone = dc.group_loss(*changed_pair, d, tellers, None, "layerwise_cosine")
        expected += alone.item()
    assert math.isclose(loss, expected, rel_tol=1e-12)


def test_batch_norm_is_frozen_after_one_look() -> None:
    network = smooth_network(2, seed=0, norm="batch")
    convolution, norm = network.features[0], network.features[1]
    network.eval()
    real = list(pictures(2, 16, 2, 4, 4) + 1)
    dc.freeze_batch_norm(network, real)
    assert network.training
    assert convolution.training
    assert not norm.training
    # A momentum of 0.1 from mean 0 and variance 1, over the images of all groups together.
    seen = convolution(torch.cat(real)).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, 0.1 * seen.mean(dim=1))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * seen.var(dim=1))

    before = copy.deepcopy(norm.state_dict())
    dc.dc_step(pictures(2, 2, 4, 4), 1, None, 0.0, 0.1, network, None, real)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    assert norm.num_batches_tracked == 1

    without = smooth_network(2, seed=0).eval()
    dc.freeze_batch_norm(without, real)
    assert not without.training


def test_dc_loop_freezes_both_networks_before_each_image_step() -> None:
    networks = smooth_network(2, seed=0, norm="batch"), smooth_network(3, seed=1, norm="batch")
    copies = copy.deepcopy(networks)
    images, logits = pictures(4, 2, 4, 4), pictures(4, 3, 2, 4, 4, seed=1) * 0.1
    real = list(pictures(2, 5, 2, 4, 4, seed=1)), list(pictures(3, 5, 2, 4, 4, seed=2))
    looks = [
        (list(pictures(2, 16, 2, 4, 4, seed=s)), list(pictures(3, 16, 2, 4, 4, seed=s + 2)))
        for s in (2, 3)
    ]
    positions = [
        dc.Position(
            *real,
            class_orders=orders(1, 4, seed=k),
            domain_orders=orders(1, 12, seed=k),
            class_statistics=looks[k][0],
            domain_statistics=looks[k][1],
        )
        for k in range(2)
    ]
    arguments = (2, logits, 0.3, 0.1, *networks, positions, 0.1, 0.01)
    result = dc.dc_loop(images, *arguments, freeze=True)

    for network, look in zip(copies, looks[0], strict=True):
        dc.freeze_batch_norm(network, look)
    first = dc.dc_step(images, 2, logits, 0.3, 0.1, *copies, *real)
    assert first.grad_logits is not None
    x, z = images - 0.1 * first.grad_images, logits - 0.1 * first.grad_logits
    dc.inner_training(copies[0], x, torch.tensor([0, 0, 1, 1]), orders(1, 4, seed=0), 0.01, 256)
    pool = torch.cat(dm.domain_views(x, z, 0.1))
    domain_labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    dc.inner_training(copies[1], pool, domain_labels, orders(1, 12, seed=0), 0.01, 256)
    for network, look in zip(copies, looks[1], strict=True):
        assert network.features[1].training
        dc.freeze_batch_norm(network, look)
    second = dc.dc_step(x, 2, z, 0.3, 0.1, *copies, *real)
    for step, expected in zip(result.steps, (first, second), strict=True):
        assert step.loss_class == expected.loss_class
        assert step.loss_domain == expected.loss_domain


def test_inner_training_is_sgd_without_momentum_by_hand() -> None:
    images, labels = pictures(5, 1, 2, 2), [0, 1, 2, 1, 0]
    network = linear_network(4, 3, seed=1)
    weight = network[1].weight.detach().numpy().copy()
    seen: list[tuple[int, int, int]] = []

    def augment(batch: Tensor, epoch: int, number: int) -> Tensor:
        seen.append((epoch, number, len(batch)))
        return batch + epoch

    chosen = orders(2, 5, seed=0)
    dc.inner_training(network, images, torch.tensor(labels), chosen, 0.3, 3, augment)
    for epoch, order in enumerate(chosen):
        for batch in (order[:3], order[3:]):
            own = [labels[i] for i in batch.tolist()]
            weight -= 0.3 * softmax_gradient(weight, images[batch] + epoch, own)
    assert np.allclose(network[1].weight.detach().numpy(), weight, rtol=1e-12)
    assert seen == [(0, 0, 3), (0, 1, 2), (1, 0, 3), (1, 1, 2)]


def test_dc_loop_equals_torch_sgd() -> None:
    images, logits = pictures(4, 2, 4, 4), pictures(4, 3, 2, 4, 4, seed=1) * 0.1
    networks = smooth_network(2, seed=1), smooth_network(3, seed=2)
    copies = copy.deepcopy(networks)
    positions = [
        dc.Position(
            list(pictures(2, 5, 2, 4, 4, seed=10 + k)),
            list(pictures(3, 5, 2, 4, 4, seed=20 + k)),
            class_orders=orders(2, 4, seed=k),
            domain_orders=orders(2, 12, seed=k),
            class_augment=lambda batch, epoch, number: batch * (1 + epoch),
            domain_augment=lambda batch, epoch, number: batch + number,
        )
        for k in range(3)
    ]
    arguments = (2, logits, 0.3, 0.5, *networks, positions, 0.5, 0.1)
    result = dc.dc_loop(images, *arguments, lr_masks=0.2, batch_train=7)

    x, z = images.clone().requires_grad_(), logits.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [{"params": [x], "lr": 0.5}, {"params": [z], "lr": 0.2}], lr=1.0, momentum=0.5
    )
    trainers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in copies]
    for k, position in enumerate(positions):
        step = dc.dc_step(x, 2, z, 0.3, 0.5, *copies, *position[:2])
        assert math.isclose(result.steps[k].loss_class, step.loss_class, rel_tol=1e-9)
        assert math.isclose(result.steps[k].loss_domain, step.loss_domain, rel_tol=1e-9)
        x.grad, z.grad = step.grad_images, step.grad_logits
        optimizer.step()
        if k == 2:
            break
        views = (x.unsqueeze(1) * torch.softmax(z / 0.5, dim=1)).detach()
        # Domain by domain: view d of image m at index d * M + m.
        pool = torch.stack([views[i % 4, i // 4] for i in range(12)])
        for epoch in range(2):
            chosen = position.class_orders[epoch]  # all 4 images in one batch
            outputs = copies[0](x.detach()[chosen] * (1 + epoch))
            trainers[0].zero_grad()
            nn.functional.cross_entropy(outputs, chosen // 2).backward()
            trainers[0].step()
            for number, chosen in enumerate(position.domain_orders[epoch].split(7)):
                trainers[1].zero_grad()
                outputs = copies[1](pool[chosen] + number)
                nn.functional.cross_entropy(outputs, chosen // 4).backward()
                trainers[1].step()
    assert torch.allclose(result.images, x, rtol=1e-9)
    assert result.logits is not None
    assert torch.allclose(result.logits, z, rtol=1e-9)
    for network, copied in zip(networks, copies, strict=True):
        for a, b in zip(network.parameters(), copied.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-9)
    assert result.images_buffer is not None
    assert torch.allclose(result.images_buffer, optimizer.state[x]["momentum_buffer"], rtol=1e-9)


def test_dc_momentum_lasts_from_one_outer_loop_to_the_next() -> None:
    images, logits = pictures(2, 2, 4, 4), pictures(2, 3, 2, 4, 4, seed=1) * 0.1
    networks = smooth_network(2, seed=1), smooth_network(3, seed=2)
    position = dc.Position(
        list(pictures(2, 5, 2, 4, 4, seed=2)), list(pictures(3, 5, 2, 4, 4, seed=3))
    )
    # Without orders nothing is trained, so that one outer loop of two equals two of one.
    whole = dc.dc_loop(images, 1, logits, 0.3, 0.1, *networks, [position] * 2, 0.5, 0.1)
    part = dc.dc_loop(images, 1, logits, 0.3, 0.1, *networks, [position], 0.5, 0.1)
    part = dc.dc_loop(
        part.images,
        1,
        part.logits,
        0.3,
        0.1,
        *networks,
        [position],
        0.5,
        0.1,
        images_buffer=part.images_buffer,
        logits_buffer=part.logits_buffer,
    )
    assert torch.equal(whole.images, part.images)
    assert whole.logits is not None
    assert part.logits is not None
    assert torch.equal(whole.logits, part.logits)


def test_inner_batches_use_up_one_permutation_after_the_other() -> None:
    first, second = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([0, 1, 2, 3, 4])
    batches = mtt.inner_batches([first, second], 2, 5)
    assert [b.tolist() for b in batches] == [[4, 2], [0, 1], [3], [0, 1], [2, 3]]
    batches = mtt.inner_batches([first, second], 5, 2)
    assert [b.tolist() for b in batches] == [first.tolist(), second.tolist()]
    assert [len(b) for b in mtt.inner_batches([first], 8, 1)] == [5]


def test_student_of_a_linear_network_by_hand() -> None:
    """Three written-out steps; the step size is the gradient's factor and nothing has momentum."""
    images, labels = pictures(4, 1, 2, 2), torch.tensor([0, 0, 1, 2])
    network = linear_network(4, 3, seed=1)
    start, target = pictures(12, seed=2), pictures(12, seed=3)
    batches = [torch.tensor([2, 0, 3]), torch.tensor([1]), torch.tensor([3, 1, 0])]
    result = mtt.student_loss(start, target, images, labels, batches, None, exactly(0.7), network)
    weight = start.reshape(3, 4).numpy().copy()
    for batch in batches:
        weight -= 0.7 * softmax_gradient(weight, images[batch], labels[batch].tolist())
    expected = ((weight.ravel() - target.numpy()) ** 2).sum() / ((start - target) ** 2).sum()
    assert math.isclose(result.loss, float(expected), rel_tol=1e-12)


def test_flat_vectors_are_in_the_order_of_named_parameters() -> None:
    network, other = smooth_network(2, seed=1), smooth_network(2, seed=2)
    x = pictures(3, 2, 4, 4)
    outputs = mtt.call(other, experts.flat_parameters(network), x)
    assert torch.equal(outputs, network(x))
    assert not torch.equal(outputs, other(x))


def mtt_case() -> tuple[Tensor, Tensor, Tensor, mtt.Branch, mtt.Branch]:
    """Two classes, three domains, 4 inner steps on batches of 3, with augmentation."""
    images, logits = pictures(4, 2, 4, 4), pictures(4, 3, 2, 4, 4, seed=1) * 0.1
    branches = []
    for k, (outputs, pool) in enumerate([(2, 4), (3, 12)]):
        network = smooth_network(outputs, seed=k)
        start = experts.flat_parameters(network)
        target = start + 0.1 * pictures(len(start), seed=5 + k)
        batches = mtt.inner_batches(orders(2, pool, seed=k), 3, 4)
        chosen: list[mtt.BatchAugmentation] = [
            (operation, uniforms[: len(batch)])
            for batch, (operation, uniforms) in zip(
                batches, per_image(4, 3, seed=3 * k), strict=True
            )
        ]
        step_size = exactly(0.5 + k)
        branches.append(mtt.Branch(network, start, target, batches, chosen, step_size))
    return images, torch.tensor([0, 0, 1, 1]), logits, branches[0], branches[1]


def test_student_gradients_are_the_slopes() -> None:
    images, labels, _, branch, _ = mtt_case()
    assert branch.step_size is not None

    def student(images: Tensor, step_size: Tensor) -> mtt.StudentResult:
        return mtt.student_loss(
            branch.start,
            branch.target,
            images,
            labels,
            branch.batches,
            branch.augmentations,
            step_size,
            branch.network,
        )

    size = branch.step_size
    result = student(images, size)
    agrees(lambda x: float(student(x, size).loss), images, result.grad_images)
    agrees(lambda a: float(student(images, a).loss), size, result.grad_step_size)
    base = mtt.mtt_step(images, labels, None, 0.0, 0.1, branch)
    assert base.loss_class == result.loss
    assert base.loss_domain == 0
    assert base.grad_logits is None
    assert torch.equal(base.grad_images, result.grad_images)
    assert torch.equal(base.grad_step_size, result.grad_step_size)


@pytest.mark.parametrize("shared", [False, True])
def test_mtt_gradients_are_the_slopes(shared: bool) -> None:
    images, labels, logits, class_branch, domain_branch = mtt_case()
    size = class_branch.step_size
    domain_size = None if shared else domain_branch.step_size
    assert size is not None

    def step(
        images: Tensor, logits: Tensor, size: Tensor, domain_size: Tensor | None
    ) -> mtt.MTTResult:
        return mtt.mtt_step(
            images,
            labels,
            logits,
            0.3,
            0.5,
            class_branch._replace(step_size=size),
            domain_branch._replace(step_size=domain_size),
        )

    def total(result: mtt.MTTResult) -> float:
        return float(result.loss_class + 0.3 * result.loss_domain)

    result = step(images, logits, size, domain_size)
    assert result.grad_logits is not None
    agrees(lambda x: total(step(x, logits, size, domain_size)), images, result.grad_images)
    agrees(lambda z: total(step(images, z, size, domain_size)), logits, result.grad_logits)
    agrees(lambda a: total(step(images, logits, a, domain_size)), size, result.grad_step_size)
    if domain_size is None:
        assert result.grad_step_size_domain is None
    else:
        assert result.grad_step_size_domain is not None
        agrees(
            lambda a: total(step(images, logits, size, a)),
            domain_size,
            result.grad_step_size_domain,
        )


def test_domain_student_sees_the_views_domain_by_domain() -> None:
    images, labels, logits, class_branch, domain_branch = mtt_case()
    result = mtt.mtt_step(images, labels, logits, 0.3, 0.5, class_branch, domain_branch)
    views = images.unsqueeze(1) * torch.softmax(logits / 0.5, dim=1)
    pool = torch.stack([views[i % 4, i // 4] for i in range(12)])
    assert domain_branch.step_size is not None
    alone = mtt.student_loss(
        domain_branch.start,
        domain_branch.target,
        pool,
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        domain_branch.batches,
        domain_branch.augmentations,
        domain_branch.step_size,
        domain_branch.network,
    )
    assert math.isclose(result.loss_domain, alone.loss, rel_tol=1e-12)


def test_mtt_augments_each_image_with_its_own_parameters() -> None:
    images, labels, _, branch, _ = mtt_case()
    size = exactly(0.5)
    batch, uniforms = torch.tensor([3, 1]), [[0.1, 0.2, 0.3], [0.9, 0.6, 0.7]]
    ends = branch.start, branch.target
    chosen: list[mtt.BatchAugmentation] = [("color", uniforms)]
    result = mtt.student_loss(*ends, images, labels, [batch], chosen, size, branch.network)
    changed = images.clone()
    for image, own in zip(batch.tolist(), uniforms, strict=True):
        changed[image] = augmentation.apply(images[image : image + 1], "color", own)[0]
    plain = mtt.student_loss(*ends, changed, labels, [batch], None, size, branch.network)
    assert result.loss == plain.loss


def test_expert_trajectory_by_hand() -> None:
    images, labels = pictures(5, 1, 2, 2), [0, 1, 2, 1, 0]
    network = linear_network(4, 3, seed=1)
    weight = network[1].weight.detach().numpy().copy()
    expected = [weight.copy()]
    chosen = orders(3, 5, seed=0)
    trajectory = experts.train_expert(
        network, images, torch.tensor(labels), chosen, 0.3, 2, lambda b, e, n: b * (1 + e) + n
    )
    for epoch, order in enumerate(chosen):
        for number, batch in enumerate((order[:2], order[2:4], order[4:])):
            own = [labels[i] for i in batch.tolist()]
            changed = images[batch] * (1 + epoch) + number
            weight -= 0.3 * softmax_gradient(weight, changed, own)
        expected.append(weight.copy())
    assert len(trajectory) == 4
    for ours, theirs in zip(trajectory, expected, strict=True):
        assert np.allclose(ours.numpy(), theirs.ravel(), rtol=1e-12)


def test_student_on_the_experts_own_steps_ends_where_it_did() -> None:
    """Trained on the expert's images in its order with its step size, the loss is 0."""
    images, labels = pictures(6, 2, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    network = smooth_network(2, seed=3)
    chosen = orders(2, 6, seed=0)
    trajectory = experts.train_expert(network, images, labels, chosen, 0.2, 4)
    result = mtt.student_loss(
        trajectory[0],
        trajectory[2],
        images,
        labels,
        mtt.inner_batches(chosen, 4, 4),
        None,
        exactly(0.2),
        network,
    )
    assert 0 <= result.loss < 1e-24
