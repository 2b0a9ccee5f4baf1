"""Experts: their training, their files, and what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import dam_lightning.functional.augmentation
from dam_lightning import MTT, Experts, pieces
from dam_lightning.backbones import ConvNet, build_backbone
from dam_lightning.data import Split
from dam_lightning.functional import DSA, OPERATIONS, rank_groups, strategy_operations, whiten
from dam_lightning.methods import expert_set, expert_training
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.methods.expert_training import train_experts
from dam_lightning.methods.stability import DivergenceError
from dam_lightning.randomness import numpy_generator, torch_generator
from tests.no_sync import SyncCounter
from tests.reference import augmentation, convnet, experts
from tests.tiny import CLASS_SIZES, TinyData, tiny_data, tiny_trainer

NETWORK = {"width": 4, "depth": 2}
IMAGES = sum(CLASS_SIZES)
BATCH = 10
LR = 0.05
"""Larger than usual, so that a few steps go far."""


def make_recipe(**options: Any) -> ExpertRecipe:
    return ExpertRecipe(**{"backbone_args": NETWORK, "lr": LR, "batch_size": BATCH, **options})


def make_data(folder: Path, num_domains: int | None = None, **options: Any) -> ExpertData:
    return ExpertData(tiny_data(folder, **options), num_domains, torch.device("cpu"))


def make_store(data: ExpertData, recipe: ExpertRecipe, folder: Path | None = None) -> ExpertStore:
    size = data.network(recipe, 0).size
    return ExpertStore(folder or data.default_folder(recipe), data.describe(recipe), size)


def trained(
    folder: Path,
    numbers: Any = range(3),
    epochs: int = 2,
    max_images: int | None = BATCH,
    num_domains: int | None = None,
    data: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> list[Tensor]:
    """Trajectories of experts trained in ``folder``."""
    found, how = make_data(folder, num_domains, **(data or {})), make_recipe(**recipe)
    store = make_store(found, how)
    for _ in train_experts(store, found, how, list(numbers), epochs, max_images):
        pass
    return [store.parameters(number, slice(None)) for number in numbers]


def make(**options: Any) -> Experts:
    defaults = {"count": 3, "epochs": 2, "backbone_args": NETWORK, "lr": LR, "batch_size": BATCH}
    return Experts(**{**defaults, **options})


def fit(module: Experts, folder: Path, *callbacks: Callback, **data: Any) -> Experts:
    """Train experts by a Trainer whose runs leave their files in ``folder``."""
    trainer = tiny_trainer(folder, callbacks=list(callbacks), max_epochs=-1)
    trainer.fit(module, datamodule=tiny_data(folder, **data))
    return module


def make_mtt(**options: Any) -> MTT:
    """That reads as many epochs of as many experts as `make` trains."""
    known = {"count": 3, "lr": LR, "batch_size": BATCH}
    given = {"max_start_epoch": 1, "expert_epochs": 2, "student_steps": 2, **options}
    given["experts"] = {**known, **given.get("experts", {})}
    return MTT(backbone_args=given.pop("backbone_args", NETWORK), seed=0, **given)


def fit_mtt(module: MTT, folder: Path, **data: Any) -> MTT:
    trainer = tiny_trainer(folder, max_steps=1)
    trainer.fit(module, datamodule=tiny_data(folder, **data))
    return module


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every expert under ``folder``."""
    found = sorted(folder.rglob("expert_*.safetensors"))
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in found
    }


# Training.


@pytest.mark.parametrize("num_domains", [None, 4], ids=["classes", "domains"])
@pytest.mark.parametrize("augmentation", [None, DSA], ids=["plain", "augmented"])
def test_side_by_side_equals_one_by_one(
    tmp_path: Path, num_domains: int | None, augmentation: str | None
) -> None:
    given: dict[str, Any] = {"num_domains": num_domains, "augmentation": augmentation}
    ways = [
        trained(tmp_path / str(most), max_images=most, **given) for most in (BATCH, 2 * BATCH, 1000)
    ]
    for number, alone in enumerate(ways[0]):
        assert float((alone[-1] - alone[0]).abs().max()) > 0.01
        for way in ways[1:]:
            assert torch.equal(way[number][0], alone[0])
            torch.testing.assert_close(way[number], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("most", "blocks"), [(9, [1, 1, 1]), (29, [2, 1]), (30, [3])])
def test_the_budget_sets_how_many_are_trained_together(
    tmp_path: Path, most: int, blocks: list[int]
) -> None:
    data, recipe = make_data(tmp_path), make_recipe()
    work = train_experts(make_store(data, recipe), data, recipe, range(3), 1, most)
    assert [len(done.numbers) for done in work] == blocks


@pytest.mark.parametrize("most", [None, 1000], ids=["alone", "together"])
def test_the_host_never_waits_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """Only between epochs, when parameters are kept."""
    # Looks at parameters only where they are on the host.
    monkeypatch.setattr(dam_lightning.functional.augmentation, "_is_needed", lambda *_: True)
    counter, epochs, original = SyncCounter(), [], expert_training.train_epoch

    def counted(*arguments: Any) -> Any:
        epochs.append(arguments[-1])
        with counter:
            return original(*arguments)

    monkeypatch.setattr(expert_training, "train_epoch", counted)
    trained(tmp_path, max_images=most)
    assert epochs == ([1, 2] * 3 if most is None else [1, 2])
    assert not counter.counts


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pieces_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Batches of 10, and a last one of 3, in pieces of 4."""
    options: dict[str, Any] = {"max_images": None, "precision": precision}
    whole = trained(tmp_path / "whole", **options)
    monkeypatch.setattr(pieces, "_PIXELS_IN_CACHE", 4 * 16 * 16)
    for found, wanted in zip(trained(tmp_path / "pieces", **options), whole, strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=1e-5 if precision == "float32" else 2e-2
        )


def test_compiled_experts_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are found by whoever compiles and whoever does not, and are compiled once for all."""
    plain = trained(tmp_path / "plain", max_images=None)
    module = make(compile=True, folder=str(tmp_path / "experts"))
    with caplog.at_level("INFO"):
        fit(module, tmp_path)
    for number in range(3):
        torch.testing.assert_close(module.trajectory(number), plain[number], rtol=0, atol=1e-4)
    said = [text for text in caplog.messages if text.startswith("Compiled the training")]
    # For batches of 10 images and for the last one of 3.
    assert len(said) == 2
    before = files(tmp_path / "experts")
    fit(make(compile=False, folder=str(tmp_path / "experts")), tmp_path)
    assert files(tmp_path / "experts") == before


@pytest.mark.parametrize("compile", [None, False, True])
def test_mtt_hands_on_whether_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile: bool | None
) -> None:
    asked, original = [], expert_set.train_experts

    def watched(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return original(*arguments[:-1], False)

    monkeypatch.setattr(expert_set, "train_experts", watched)
    fit_mtt(make_mtt(dam=None, experts={"compile": compile}), tmp_path)
    assert asked == [compile]


def expected(
    folder: Path, number: int, epochs: int, num_domains: int | None, strategy: str | None, seed: int
) -> list[Tensor]:
    """The plain loop in float64, with the draws made from their keys."""
    data = tiny_data(folder)
    stream, labels = "expert/class", data.train.labels
    if num_domains is not None:
        stream, labels = "expert/domain", rank_groups(data.pseudo_domain_scores, num_domains)
    outputs = num_domains or len(CLASS_SIZES)
    library = build_backbone(
        "ConvNet", (3, 16, 16), outputs, NETWORK, seed=seed, stream=stream, group=number
    )
    plain = convnet.ConvNet(3, outputs, 4, 2, (16, 16))
    convnet.copy_parameters(library, plain)
    orders, drawn = [], []
    steps = -(-IMAGES // BATCH)
    for epoch in range(1, epochs + 1):
        order = numpy_generator(seed, f"{stream}/order", epoch, number).permutation(IMAGES)
        orders.append(torch.from_numpy(order))
        if strategy is not None:
            allowed = strategy_operations(strategy)
            generator = torch_generator("cpu", seed, f"{stream}/augmentation", epoch, number)
            choice = torch.randint(len(allowed), (steps,), generator=generator).tolist()
            drawn.append(
                (
                    [OPERATIONS[allowed[one]] for one in choice],
                    torch.rand(IMAGES, 3, generator=generator).double().tolist(),
                )
            )

    def augment(images: Tensor, epoch: int, batch: int) -> Tensor:
        operations, uniforms = drawn[epoch]
        own = uniforms[batch * BATCH : batch * BATCH + len(images)]
        return augmentation.apply_per_sample(images, operations[batch], own)

    return experts.train_expert(
        plain.double(),
        data.normalisation(data.train.images).double(),
        labels,
        orders,
        LR,
        BATCH,
        None if strategy is None else augment,
    )


@pytest.mark.parametrize("num_domains", [None, 4], ids=["classes", "domains"])
@pytest.mark.parametrize("strategy", [None, DSA], ids=["plain", "augmented"])
def test_experts_equal_the_plain_loop(
    tmp_path: Path, num_domains: int | None, strategy: str | None
) -> None:
    """Pseudo-domains are what the experts of the domain loss tell apart."""
    ours = trained(
        tmp_path, [2], 3, num_domains=num_domains, augmentation=strategy, seed=5, max_images=BATCH
    )[0]
    theirs = torch.stack(expected(tmp_path, 2, 3, num_domains, strategy, seed=5))
    assert ours.shape == theirs.shape
    assert float((theirs[-1] - theirs[0]).abs().max()) > 0.05
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-5)


def test_experts_of_whitened_data_see_whitened_images(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, zca=True)
    experts = ExpertData(data, None, torch.device("cpu"))
    ((images, labels),) = experts.batches(torch.tensor([[3, 30]]), 2)
    assert data.whitening is not None
    white = whiten(data.train.images[[3, 30]].float() / 255, *data.whitening)
    torch.testing.assert_close(images[0], white, rtol=0, atol=1e-5)
    assert labels.tolist() == [[0, 2]]
    plain, whitened = trained(tmp_path), trained(tmp_path, data={"zca": True})
    assert torch.equal(plain[0][0], whitened[0][0])
    assert not torch.allclose(plain[0][1], whitened[0][1], atol=1e-3)


def test_the_seed_of_the_run_changes_nothing_that_of_the_experts_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first = trained(tmp_path / "first", [0], 1)[0]
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    torch.manual_seed(3)
    again = trained(tmp_path / "again", [0], 1)[0]
    other = trained(tmp_path / "other", [0], 1, seed=1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("together", [1, 3])
def test_trained_on_equals_trained_in_one_go(tmp_path: Path, together: int) -> None:
    most = together * BATCH
    whole = trained(tmp_path / "whole", epochs=4, max_images=most)
    begun = trained(tmp_path / "parts", epochs=1, max_images=most)
    again = trained(tmp_path / "parts", epochs=4, max_images=most)
    for number in range(3):
        assert torch.equal(begun[number], whole[number][:2])
        assert torch.equal(again[number], whole[number])


def test_what_is_there_is_not_trained_again(tmp_path: Path) -> None:
    """Nor for shorter: what others need stays."""
    trained(tmp_path, epochs=2)
    before = files(tmp_path)
    data, recipe = make_data(tmp_path), make_recipe()
    store = make_store(data, recipe)
    assert list(train_experts(store, data, recipe, range(3), 1, BATCH)) == []
    done = list(train_experts(store, data, recipe, range(4), 2, BATCH))
    assert [(epoch.numbers, epoch.epoch) for epoch in done] == [([3], 1), ([3], 2)]
    after = files(tmp_path)
    assert len(after) == 4
    assert before.items() <= after.items()


def test_diverging_experts_end_in_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"expert 0 .* after epoch 1: lower .* lr \(now 1e\+"):
        trained(tmp_path, lr=1e30)
    assert files(tmp_path) == {}


# Files.


@pytest.mark.parametrize("num_domains", [None, 4], ids=["classes", "domains"])
def test_a_file_holds_a_trajectory_and_what_it_depends_on(
    tmp_path: Path, num_domains: int | None
) -> None:
    kind = "class" if num_domains is None else "domain"
    fit(make(num_domains=num_domains, folder=str(tmp_path / "experts")), tmp_path)
    names = [f"{kind}/expert_000{number}.safetensors" for number in range(3)]
    assert list(files(tmp_path / "experts")) == names
    data, network = make_data(tmp_path, num_domains), NETWORK
    with safe_open(tmp_path / "experts" / names[1], framework="pt") as file:
        description = json.loads(file.metadata()["description"])
        trajectory = file.get_tensor("trajectory")
    library = build_backbone("ConvNet", (3, 16, 16), num_domains or 3, network)
    assert trajectory.dtype == torch.float32
    assert trajectory.shape == (3, sum(p.numel() for p in library.parameters()))
    assert description["fingerprint"] == tiny_data(tmp_path).fingerprint
    assert description["labels"] == kind
    assert description["num_outputs"] == data.num_outputs == (num_domains or 3)
    assert (description["lr"], description["batch_size"]) == (LR, BATCH)
    assert description["backbone_args"] == NETWORK
    assert str(tmp_path) not in json.dumps(description)


def test_a_part_of_a_trajectory_is_what_was_asked_for(tmp_path: Path) -> None:
    whole = trained(tmp_path, [1], 3)[0]
    store = make_store(make_data(tmp_path), make_recipe())
    assert torch.equal(store.parameters(1, 2), whole[2])
    assert torch.equal(store.parameters(1, slice(1, 3)), whole[1:3])
    assert store.epochs(1) == 3
    assert store.epochs(0) is None


class Different(TinyData):
    """The same images, and one of them in another class."""

    def load_splits(self) -> Mapping[str, Split]:
        splits = dict(super().load_splits())
        train = splits["train"]
        labels = train.labels.clone()
        labels[0] = 1
        splits["train"] = Split(train.images, labels, train.domains, train.paths)
        return splits


def test_other_experts_have_another_folder_in_the_cache(tmp_path: Path) -> None:
    """Whatever a trajectory depends on tells folders apart, and nothing else does."""

    def folder(
        num_domains: int | None = None,
        cls: type[TinyData] = TinyData,
        zca: bool = False,
        **how: Any,
    ) -> Path:
        data = cls(cache_dir=str(tmp_path), zca=zca)
        data.setup()
        recipe = make_recipe(**how)
        return ExpertData(data, num_domains, torch.device("cpu")).default_folder(recipe)

    others = [
        folder(4),
        folder(3),
        folder(cls=Different),
        folder(zca=True),
        folder(lr=0.1),
        folder(batch_size=5),
        folder(seed=1),
        folder(augmentation=None),
        folder(augmentation="flip"),
        folder(backbone_args={"width": 8, "depth": 2}),
    ]
    assert len({folder(), *others}) == len(others) + 1
    assert folder() == folder(backbone_args={"depth": 2, "width": 4})
    assert {path.parent for path in others} == {tmp_path / "experts"}


# Bad files.


def store_of_one(folder: Path) -> tuple[ExpertStore, Path, bytes]:
    trained(folder, [0], 1)
    store = make_store(make_data(folder), make_recipe())
    path = store.path(0)
    return store, path, path.read_bytes()


def write(path: Path, tensors: dict[str, Tensor], description: str | None) -> None:
    save_file(tensors, path, None if description is None else {"description": description})


def _truncate(path: Path, whole: dict[str, Tensor], text: str) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _cut_header(path: Path, whole: dict[str, Tensor], text: str) -> None:
    path.write_bytes(path.read_bytes()[:20])


DAMAGE: dict[str, tuple[Callable[[Path, dict[str, Tensor], str], None], str]] = {
    "truncated": (_truncate, "is no expert, or is damaged"),
    "cut in the header": (_cut_header, "is no expert, or is damaged"),
    "empty": (lambda path, *_: path.write_bytes(b"") and None, "is no expert, or is damaged"),
    "text": (lambda path, *_: path.write_text("no") and None, "is no expert, or is damaged"),
    "another kind": (lambda p, w, t: write(p, {"images": w["trajectory"]}, t), "is no expert"),
    "no description": (lambda p, w, t: write(p, w, None), "is no expert, or is damaged"),
    "no JSON": (lambda p, w, t: write(p, w, "{"), "is no expert, or is damaged"),
    "too few parameters": (
        lambda p, w, t: write(p, {"trajectory": w["trajectory"][:, 1:].contiguous()}, t),
        r"should hold float32 \(epochs \+ 1, \d+\), but holds F32 \(2, ",
    ),
    "float64": (
        lambda p, w, t: write(p, {"trajectory": w["trajectory"].double()}, t),
        "should hold float32 .* but holds F64",
    ),
    "a vector": (
        lambda p, w, t: write(p, {"trajectory": w["trajectory"][0].clone()}, t),
        "should hold float32",
    ),
    "no epoch at all": (
        lambda p, w, t: write(p, {"trajectory": w["trajectory"][:0].clone()}, t),
        "should hold float32",
    ),
    "an epoch more than it says": (
        lambda p, w, t: write(p, {"trajectory": w["trajectory"].repeat(2, 1)}, t),
        "is damaged: ",
    ),
    "nested too deep": (lambda p, w, t: write(p, w, "[" * 100_000), "is no expert, or is damaged"),
    "checksums in a mapping": (
        lambda p, w, t: write(p, w, json.dumps({**json.loads(t), "checksums": {"a": 1, "b": 2}})),
        "is no expert, or is damaged",
    ),
    "checksums that are none": (
        lambda p, w, t: write(p, w, json.dumps({**json.loads(t), "checksums": 3})),
        "is no expert, or is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    """It stays as it is; deleted as the message says, the expert is trained again."""
    store, path, before = store_of_one(tmp_path)
    with safe_open(path, framework="pt") as file:
        whole, text = {"trajectory": file.get_tensor("trajectory")}, file.metadata()["description"]
    damage, message = DAMAGE[kind]
    damage(path, whole, text)
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match=message) as raised:
        store.epochs(0)
    assert str(path) in str(raised.value)
    assert "delete it, and it is trained again" in str(raised.value)
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, [0], 1)
    assert path.read_bytes() == damaged
    path.unlink()
    trained(tmp_path, [0], 1)
    assert path.read_bytes() == before


def test_a_parameter_that_changed_is_noticed(tmp_path: Path) -> None:
    """Where it is read, and only there."""
    store, path, before = store_of_one(tmp_path)
    assert store.parameters(0, 1).isfinite().all()
    path.write_bytes(before[:-4] + bytes([before[-4] ^ 1]) + before[-3:])
    assert store.epochs(0) == 1
    assert store.parameters(0, 0).isfinite().all()
    for epochs in (1, slice(None)):
        with pytest.raises(ValueError, match=r"expert_0000.* is damaged \(epoch 1\): delete it"):
            store.parameters(0, epochs)


def test_an_expert_that_was_made_anew_meanwhile(tmp_path: Path) -> None:
    """For less long, by another recipe, or that is gone."""
    store, path, _ = store_of_one(tmp_path)
    store.save(0, store.parameters(0, slice(1)))
    with pytest.raises(ValueError, match=r"has 0 epochs by now, and epoch 1 is needed: start ag"):
        store.parameters(0, 1)
    other = ExpertStore(store.folder, {**store._description, "lr": 0.1}, store._size)
    other.save(0, torch.zeros(2, store._size))
    with pytest.raises(ValueError, match=r"are others than those asked for: lr 0\.1 there"):
        store.parameters(0, 1)
    path.unlink()
    with pytest.raises(ValueError, match=r"expert_0000.*No such file"):
        store.parameters(0, 1)


@pytest.mark.parametrize("text", ["[1, 2]", '"class"', "3", "null"])
def test_a_description_that_is_no_object(tmp_path: Path, text: str) -> None:
    store, path, _ = store_of_one(tmp_path)
    with safe_open(path, framework="pt") as file:
        whole = {"trajectory": file.get_tensor("trajectory")}
    write(path, whole, text)
    with pytest.raises(ValueError, match=r"the experts in .* are others than those asked for"):
        store.epochs(0)


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lr": ({"lr": 0.1}, {}, "lr 0.05 there, 0.1 here"),
    "batch_size": ({"batch_size": 7}, {}, "batch_size 10 there, 7 here"),
    "augmentation": ({"augmentation": None}, {}, f"augmentation {DSA} there, None here"),
    "seed": ({"seed": 4}, {}, "seed 0 there, 4 here"),
    "backbone_args": (
        {"backbone_args": {"width": 8, "depth": 2}},
        {},
        "backbone_args .*'width': 4.* there, .*'width': 8.* here",
    ),
    "zca": ({}, {"zca": True}, "zca False there, True here"),
    "images": ({}, {"validation_share": 0.3}, r"\bfingerprint [0-9a-f]+ there, [0-9a-f]+ here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_experts_in_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    """By both modules, with both values and the remedy; nothing is changed."""
    options, data, message = OTHERS[name]
    folder = str(tmp_path / "experts")
    fit(make(folder=folder), tmp_path)
    before = files(tmp_path)
    match = f"others than those asked for: .*{message}.*name another folder"
    with pytest.raises(ValueError, match=match):
        fit(make(folder=folder, **options), tmp_path, **data)
    backbone = {k: v for k, v in options.items() if k in ("backbone_args", "augmentation")}
    known = {k: v for k, v in options.items() if k not in backbone}
    module = make_mtt(experts={"folder": folder, **known}, **backbone)
    with pytest.raises(ValueError, match=match):
        fit_mtt(module, tmp_path, **data)
    assert files(tmp_path) == before


def test_experts_of_another_dataset_or_number_of_domains_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "experts")
    fit(make(num_domains=3, folder=folder), tmp_path)
    with pytest.raises(ValueError, match="num_outputs 3 there, 4 here; labels_fingerprint"):
        fit(make(num_domains=4, folder=folder), tmp_path)
    module = make_mtt(dam={"num_domains": 4}, domain_experts={"folder": folder})
    with pytest.raises(ValueError, match="num_outputs 3 there, 4 here"):
        fit_mtt(module, tmp_path)
    other = Different(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="dataset TinyData there, Different here; fingerprint"):
        tiny_trainer(tmp_path).fit(make(num_domains=3, folder=folder), datamodule=other)


def test_experts_of_pseudo_domains_that_were_cut_otherwise_are_refused(tmp_path: Path) -> None:
    """The images and the number of domains are the same, the labels are not."""
    folder = str(tmp_path / "experts")
    fit(make(num_domains=3, folder=folder), tmp_path)
    match = "asked for: labels_fingerprint [0-9a-f]+ there, [0-9a-f]+ here"
    with pytest.raises(ValueError, match=match):
        fit(make(num_domains=3, folder=folder), tmp_path, fft_ratio=0.4)


# The module.


def test_experts_are_fitted_and_tested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = fit(make(epochs=4), tmp_path)
    (known,) = trained(tmp_path / "again", [2], 4)
    torch.testing.assert_close(module.trajectory(2), known, rtol=0, atol=1e-5)
    data = tiny_data(tmp_path)
    images, correct = data.normalisation(data.test.images), []
    for number in range(3):
        network = build_backbone("ConvNet", (3, 16, 16), 3, NETWORK)
        vector = module.trajectory(number)[3]
        torch.nn.utils.vector_to_parameters(vector, network.parameters())
        with torch.no_grad():
            correct.append(network(images).argmax(1) == data.test.labels)
    accuracies = 100 * torch.stack(correct).double().mean(dim=1)
    with caplog.at_level("INFO"):
        (scores,) = tiny_trainer(tmp_path).test(make(epochs=3), datamodule=data, verbose=False)
    assert accuracies.mean() not in (0, 100)
    assert scores["test/accuracy"] == pytest.approx(float(accuracies.mean()), abs=1e-4)
    said = f"3 experts classify {float(accuracies.mean()):.1f} % of the test images"
    assert any(said in message for message in caplog.messages)


def test_a_fit_stops_when_all_are_trained(tmp_path: Path) -> None:
    """A step is an epoch of a block; one more finds nothing left."""
    assert fit(make(max_images=20), tmp_path).global_step == 0
    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["loss"]))

    fit(make(max_images=20, folder=str(tmp_path / "others")), tmp_path, Watch())
    assert len(losses) == 2 * 2 + 1
    assert losses[1] < losses[0]
    del losses[:]
    fit(make(max_images=20, folder=str(tmp_path / "more"), count=1, epochs=9), tmp_path, Watch())
    assert len(losses) == 9 + 1
    assert losses[8] < losses[0] / 2


class Interrupt(Callback):
    """In the middle of the second block of experts of two epochs."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("the power failed")


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 4, "max_images": 2 * BATCH}
    fit(make(folder=str(tmp_path / "whole"), **options), tmp_path)
    folder = tmp_path / "parts"
    with pytest.raises(RuntimeError, match="the power failed"):
        fit(make(folder=str(folder), **options), tmp_path, Interrupt())
    begun = files(folder)
    assert list(begun) == [f"class/expert_000{number}.safetensors" for number in (0, 1)]
    assert not [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in [Path(name).name for name in begun]
    ]
    fit(make(folder=str(folder), **options), tmp_path)
    again = files(folder)
    assert begun.items() <= again.items()
    whole = {name: content for name, (_, content) in files(tmp_path / "whole").items()}
    assert {name: content for name, (_, content) in again.items()} == whole
    before = files(folder)
    fit(make(folder=str(folder), **options), tmp_path)
    assert files(folder) == before


def test_a_lost_expert_is_trained_again(tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    fit(make(folder=str(folder), max_images=BATCH), tmp_path)
    before = files(folder)
    lost = "class/expert_0001.safetensors"
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=r"1 of 3 experts are missing in .*: fit them first"):
        tiny_trainer(tmp_path).test(make(folder=str(folder)), datamodule=tiny_data(tmp_path))
    fit(make(folder=str(folder), max_images=BATCH), tmp_path)
    after = files(folder)
    assert after[lost][1] == before[lost][1]
    assert {k: v for k, v in after.items() if k != lost} == {
        k: v for k, v in before.items() if k != lost
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"num_domains": 0}, "num_domains must be at least 1, got 0"),
        ({"max_images": 0}, "max_images must be at least 1, got 0"),
        ({"lr": 0.0}, "experts: lr must be above 0, got 0"),
        ({"lr": float("nan")}, "experts: lr must be above 0, got nan"),
        ({"batch_size": 0}, "experts: batch_size must be at least 1, got 0"),
        ({"augmentation": "color_blur"}, "'blur' is no operation"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    backbone = {**NETWORK, "norm": "batchnorm"}
    match = "ConvNet with batch normalisation cannot be an expert: .* use norm: instancenorm"
    with pytest.raises(ValueError, match=match):
        fit(make(backbone_args=backbone), tmp_path)
    with pytest.raises(ValueError, match=match):
        fit_mtt(make_mtt(backbone_args=backbone), tmp_path)
    assert files(tmp_path) == {}


def test_what_a_trainer_cannot_do_with_experts(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="from a data module"):
        tiny_trainer(tmp_path).fit(make(), train_dataloaders=[1])
    fit(make(num_domains=3), tmp_path)
    with pytest.raises(MisconfigurationException, match="pseudo-domains cannot be tested"):
        tiny_trainer(tmp_path).test(make(num_domains=3), datamodule=tiny_data(tmp_path))


# Found by MTT.


@pytest.mark.parametrize("given", [False, True], ids=["cache", "folder"])
def test_mtt_finds_experts_and_trains_the_same_where_there_are_none(
    tmp_path: Path, given: bool
) -> None:
    """Of both kinds, in the cache of the data module or in a folder."""
    folder = str(tmp_path / "experts") if given else None
    where = tmp_path / "experts" if given else tmp_path / "cache" / "experts"
    dam = {"num_domains": 3}
    fit(make(folder=folder), tmp_path)
    fit(make(folder=folder, num_domains=3, seed=1), tmp_path)
    before = files(where)
    assert len(before) == 6

    def condense() -> None:
        experts = {"folder": folder}
        fit_mtt(make_mtt(dam=dam, experts=experts, domain_experts={"seed": 1}), tmp_path)

    condense()
    assert files(where) == before
    shutil.rmtree(where)
    condense()
    again = files(where)
    assert {name: content for name, (_, content) in again.items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_mtt_without_masks_needs_no_domain_experts(tmp_path: Path) -> None:
    fit_mtt(make_mtt(dam={"weight": 0.0}), tmp_path)
    fit_mtt(make_mtt(dam=None), tmp_path)
    assert len(files(tmp_path)) == 3


def test_experts_in_the_cache_are_trained_on_for_mtt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the bar counts the epochs that are missing."""
    fit_mtt(make_mtt(), tmp_path)
    assert "Expert epochs 6/6 " in capsys.readouterr().err
    short = make(epochs=2)
    tiny_trainer(tmp_path).test(short, datamodule=tiny_data(tmp_path), verbose=False)
    before = [short.trajectory(number) for number in range(3)]
    fit_mtt(make_mtt(expert_epochs=5), tmp_path)
    assert "Expert epochs 9/9 " in capsys.readouterr().err
    after = make(epochs=5)
    tiny_trainer(tmp_path).test(after, datamodule=tiny_data(tmp_path), verbose=False)
    assert len(files(tmp_path)) == 3
    for number in range(3):
        assert len(after.trajectory(number)) == 6
        assert torch.equal(after.trajectory(number)[:3], before[number])


def test_experts_in_a_folder_that_are_too_short_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    fit(make(folder=str(folder)), tmp_path)
    before = files(folder)
    match = (
        "were trained 2 epochs, but max_start_epoch 2 and expert_epochs 2 read 3: train them on "
        "with Experts and epochs: 3, or lower max_start_epoch"
    )
    with pytest.raises(ValueError, match=match):
        fit_mtt(make_mtt(max_start_epoch=2, experts={"folder": str(folder)}), tmp_path)
    assert files(folder) == before
    fit(make(folder=str(folder), epochs=3), tmp_path)
    longer = files(folder)
    fit_mtt(make_mtt(max_start_epoch=2, experts={"folder": str(folder)}), tmp_path)
    fit_mtt(make_mtt(experts={"folder": str(folder)}), tmp_path)
    assert files(folder) == longer


def test_a_damaged_expert_stops_mtt_before_any_is_trained(tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    fit(make(folder=str(folder)), tmp_path)
    (folder / "class" / "expert_0000.safetensors").unlink()
    damaged = folder / "class" / "expert_0002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    before = files(folder)
    with pytest.raises(ValueError, match=r"expert_0002\.safetensors is no expert, or is damaged"):
        fit_mtt(make_mtt(experts={"folder": str(folder)}, dam={"num_domains": 3}), tmp_path)
    assert files(folder) == before


def test_diverging_experts_stop_mtt(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="lower the experts' lr"):
        fit_mtt(make_mtt(experts={"lr": 1e30}), tmp_path)


class Forgetful(ConvNet):
    """Drops half of its embedding."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.dropout = torch.nn.Dropout()

    def features(self, images: Tensor) -> Tensor:
        return self.dropout(super().features(images))


def test_dropout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"with dropout, .*, cannot be an expert: .* switch it off"
    ):
        fit(make(backbone=f"{__name__}.Forgetful"), tmp_path)


class Centred(ConvNet):
    """Takes what it sees relative to the other images of the batch."""

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return found - found.mean(dim=0)


def test_normalisation_that_is_not_pytorchs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scores depend on the other images of a batch"):
        fit(make(backbone=f"{__name__}.Centred"), tmp_path)


def test_experts_of_a_run_in_double_precision_are_the_same(tmp_path: Path) -> None:
    trajectories = []
    for precision in ("32-true", "64-true"):
        folder = tmp_path / precision
        module = make(folder=str(folder))
        trainer = tiny_trainer(folder, precision=precision)
        trainer.fit(module, datamodule=tiny_data(folder))
        trajectories.append(module.trajectory(0))
    assert torch.equal(*trajectories)
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Name another folder with folder"):
        fit(make(folder=str(tmp_path / "file")), tmp_path)
    with pytest.raises(OSError, match=r"Name another folder with experts\.folder"):
        fit_mtt(make_mtt(experts={"folder": str(tmp_path / "file")}), tmp_path)


def test_data_without_a_fingerprint_are_told_apart(tmp_path: Path) -> None:
    folders = []
    for invert in (False, True):
        data = tiny_data(tmp_path)
        data.setup()
        if invert:
            train = data.train
            images = 255 - train.images
            data.train = Split(images, train.labels, train.domains, train.paths)
        del data.fingerprint
        experts = ExpertData(data, None, torch.device("cpu"))
        folders.append(experts.default_folder(make_recipe()))
    assert folders[0] != folders[1]


def test_whitening_is_described_by_what_determines_it(tmp_path: Path) -> None:
    """The last bits of the matrix differ between machines."""
    data = tiny_data(tmp_path, zca=True)
    first = ExpertData(data, None, torch.device("cpu")).describe(make_recipe())
    assert data.whitening is not None
    data.whitening = data.whitening._replace(matrix=data.whitening.matrix * (1 + 1e-7))
    assert ExpertData(data, None, torch.device("cpu")).describe(make_recipe()) == first
    plain = ExpertData(tiny_data(tmp_path), None, torch.device("cpu"))
    assert plain.describe(make_recipe())["zca"] is not first["zca"]
