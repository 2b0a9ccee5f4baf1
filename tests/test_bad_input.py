"""What the command line makes of bad input: a table of what is done, said, returned and left.

Every row is one command in a folder of its own, beside intact images (``own``), a finished run
(``run``), two experts (``experts``) and damaged or foreign files. It says what the command's last
line must match, its exit status, and which files it may leave (as patterns); all others must be as
they were.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dam_lightning import CondensedSet
from dam_lightning.cli import main
from tests.data.test_image_folder import TWO_DOMAINS, fill, one_domain

SMALL = "{width: 4, depth: 1}"
QUICK = f"--trainer.accelerator cpu --trainer.max_steps 2 --model.backbone_args '{SMALL}'"
DATA = "--data ImageFolder --data.image_size 8 --data.cache_dir cache --data.batch_real 2"
FIT = f"fit --model DM --model.ipc 2 {DATA} --data.root own {QUICK}"
TEST = f"test --model DM --model.ipc 2 {DATA} --data.root own {QUICK}"
FIT_DC = FIT.replace("--model DM --model.ipc 2", "--model DC")
EXPERTS = FIT.replace("DM --model.ipc 2", "Experts --model.count 2 --model.epochs 1").replace(
    "--trainer.max_steps 2 ", ""
)
TEST_EXPERTS = EXPERTS.replace("fit", "test", 1)
WAY = "--model.student_steps 2 --model.expert_epochs 1 --model.max_start_epoch 1"
FIT_MTT = FIT.replace("DM", f"MTT {WAY} --model.experts.count 2")
GIVEN_EXPERTS = f"{FIT_MTT} --model.experts.folder experts"
RANDOM = "--trainer.accelerator cpu --model.recipe '{num_networks: 1, epochs: 1}'"
EVALUATE = f"test --model Evaluation {DATA} --data.root own {RANDOM}"
OBJECT = "{class_path: subprocess.Popen, init_args: {args: [touch, executed]}}"
CACHE = ("cache/*",)
RUN = (*CACHE, "lightning_logs/version_0/*")


def nothing(folder: Path) -> None: ...


class Case(NamedTuple):
    """One row of the table."""

    done: str
    command: str
    message: str
    """Regular expression; of the last line, or of all that is said where the status is 0."""
    arrange: Callable[[Path], Any] = nothing
    left: tuple[str, ...] = ()
    status: int = 1


def cut(name: str, at: float = 0.5) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * at)])

    return damage


def both(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for step in steps:
            step(folder)

    return run


def split_folders(folder: Path) -> None:
    for part in ("train", "test", "val"):
        fill(folder / "split" / part, one_domain(4))


def in_the_way(folder: Path) -> None:
    (folder / "occupied").touch()


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("hello")


def foreign_set(folder: Path) -> None:
    condensed = CondensedSet.load(folder / "run" / "last.safetensors")
    names = ["ant", "bee", "cow"]
    changed = CondensedSet(
        condensed.images, condensed.labels, {**condensed.metadata, "class_names": names}
    )
    changed.save(folder / "foreign.safetensors")


def checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The checkpoint of the run with something changed."""

    def spoil(folder: Path) -> None:
        path = folder / "run" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return spoil


def weights_only(content: dict[str, Any]) -> None:
    for name in ("callbacks", "optimizer_states", "lr_schedulers"):
        del content[name]


def rewritten(
    name: str, images: Callable[[torch.Tensor], Any] = torch.clone, **metadata: Any
) -> Callable[[Path], None]:
    """A file with other metadata, or other first tensors, and no checksum: as made by hand."""

    def rewrite(folder: Path) -> None:
        with safe_open(folder / name, framework="pt") as file:
            described = file.metadata()
        described.pop("checksum", None)
        described.pop("version", None)
        tensors = load_file(folder / name)
        first = sorted(tensors)[0]
        tensors[first] = images(tensors[first])
        save_file(tensors, folder / name, {**described, **metadata})

    return rewrite


TABLE = [
    # Folders.
    Case("root missing", f"{FIT} --data.root gone", r"There is no folder gone\. Give as root"),
    Case("root a file", f"{FIT} --data.root a.txt", r"There is no folder a\.txt", text("a.txt")),
    Case(
        "no images",
        f"{FIT} --data.root empty",
        r"No images in empty\. Expected <class>/<image> or <domain>",
        lambda folder: (folder / "empty" / "cat").mkdir(parents=True),
    ),
    Case(
        "an image beside the classes",
        FIT,
        r"told apart into .* own/stray\.png and own/.* lie\. Expected .*give layout",
        text("own/stray.png"),
    ),
    Case(
        "a single class",
        f"{FIT} --data.root own/seen --data.layout domain/class",
        r"own/seen/\w+/\d+\.png lies outside the folders <domain>/<class>\. Move it",
    ),
    Case(
        "classes taken for one",
        f"{FIT} --data.root one",
        r"one has a single class, 'images'.* Give layout: class",
        lambda folder: [fill(folder / "one" / c, {("images", ""): 4}) for c in ("cat", "dog")],
    ),
    Case(
        "an empty class",
        FIT,
        r"Class 'yak' has no training images in own\. Add some, or remove its folder",
        lambda folder: (folder / "own" / "drawn" / "yak").mkdir(),
    ),
    Case(
        "a class in some domains only",
        FIT,
        r"No images in domain 'seen' of the train split of: owl",
        lambda folder: shutil.rmtree(folder / "own" / "seen" / "owl"),
        left=RUN,
        status=0,
    ),
    Case("PACS missing", f"fit --model DM --data PACS --data.root own {QUICK}", "No PACS in own"),
    Case(
        "CIFAR-10 missing",
        f"fit --model DM --data CIFAR10 --data.root own --data.download false {QUICK}",
        r"No intact CIFAR-10 in own/cifar-10-batches-py .*download: true, or fetch https",
    ),
    # Images.
    Case(
        "a truncated image",
        FIT,
        r"1 of 60 images cannot be read: own/seen/cat/03\.png \(.*Replace .* skip_unreadable: true",
        cut("own/seen/cat/03.png"),
    ),
    Case(
        "a text named .jpg and an empty file",
        FIT,
        r"2 of 62 images cannot be read: .*a\.jpg \(cannot identify.*b\.png \(",
        both(text("own/drawn/dog/a.jpg"), lambda folder: (folder / "own/seen/cat/b.png").touch()),
    ),
    Case(
        "unreadable images, skipped on request",
        f"{FIT} --data.skip_unreadable true",
        r"1 of 60 images cannot be read: own/seen/cat/03\.png \(.*They are left out",
        cut("own/seen/cat/03.png"),
        left=RUN,
        status=0,
    ),
    # Numbers.
    Case(
        "more images per class than there are",
        f"{FIT} --model.ipc 19",
        r"class 'cat' has 18 training images, but 19 are asked for; use a smaller ipc",
        left=CACHE,
    ),
    Case(
        "more pseudo-domains than images",
        f"{FIT} --model.dam.num_domains 55",
        r"55 pseudo-domains cannot be made of 54 training images",
        left=CACHE,
    ),
    Case(
        "an image too small for the network",
        f"{FIT} --model.backbone_args.depth 5",
        r"images of 8x8 are too small for depth 5",
        left=CACHE,
    ),
    Case("no pseudo-domain", f"{FIT} --model.dam.num_domains 0", "num_domains must be at least 1"),
    Case("a negative weight", f"{FIT} --model.dam.weight -1", "weight must be 0 or above, got -1"),
    Case("ipc 0", f"{FIT} --model.ipc 0", "ipc must be at least 1, got 0"),
    Case("no step", f"{FIT} --trainer.max_steps 0", "max_steps must be at least 1, got 0"),
    Case("steps below none", f"{FIT} --trainer.max_steps -7", r"max_steps must be .* got -7"),
    Case("no end", f"{FIT} --trainer.max_steps -1", r"never end: give --trainer\.max_steps"),
    Case("no real images", f"{FIT} --data.batch_real 0", "batch_real must be at least 1, not 0"),
    Case("no pixels", f"{FIT} --data.image_size 0", "image_size must be at least 1, got 0"),
    Case("a step backwards", f"{FIT} --model.lr_images -1", "lr_images must be above 0, got -1"),
    Case("momentum 1", f"{FIT} --model.momentum 1", r"momentum must be in \[0, 1\), got 1"),
    Case("all held out", f"{FIT} --data.validation_share 1", "validation_share must be above 0"),
    Case("no epochs", f"{FIT} --model.recipe.epochs 0", "recipe: epochs must be at least 1"),
    Case(
        "a step size without end for the test",
        f"{FIT} --model.recipe.lr .inf",
        r"recipe: lr must be a finite number, got inf",
    ),
    Case(
        "a network larger than any memory",
        f"{FIT} --model.backbone_args.width 10000000000000",
        r"out of memory: give a smaller --model\.max_images, .*--model\.backbone_args\. \(",
        left=CACHE,
    ),
    Case(
        "a network of more values than can be counted",
        f"{FIT} --model.backbone_args.width 1000000000000000000",
        r"out of memory: give a smaller --model\.max_images, .*--model\.backbone_args\. \(",
        left=CACHE,
    ),
    Case(
        "more steps than can be counted",
        f"{FIT} --data.steps_per_epoch 100000000000000000000000",
        r"a number that was given is too large: .*integer",
        left=RUN,
    ),
    # Options that are unknown.
    Case("a shortened option", f"{FIT} --trainer.max_step 1", "max_step", status=2),
    Case("an unknown option", f"{FIT} --model.ipcs 1", "Option 'ipcs' is not accepted", status=2),
    Case(
        "an object among the options of the network",
        f"{FIT} --model.recipe.backbone_args '{{width: {OBJECT}}}'",
        r"\"recipe\": expected one of bool, int, float, str, list$",
        status=2,
    ),
    Case(
        "the same in a config",
        f"{FIT.replace(QUICK, '--trainer.max_steps 2')} --config object.yaml",
        r"\"backbone_args\": expected one of bool, int, float, str, list$",
        lambda folder: (folder / "object.yaml").write_text(
            f"model: {{class_path: DM, init_args: {{backbone_args: {{width: {OBJECT}}}}}}}"
        ),
        status=2,
    ),
    Case("an unknown DAM option", f"{FIT} --model.dam.D 3", r"\"dam\": .*'D'", status=2),
    Case("an unknown value", f"{FIT} --model.init zero", r"\"init\":.*'noise', 'real'", status=2),
    Case("a word for a number", f"{FIT} --model.ipc two", r"\"ipc\": .*Got value: two", status=2),
    Case("an unknown method", "fit --model DMX --data Digits", "no class or file DMX", status=2),
    Case("unknown data", "fit --model DM --data Digit", "no class or file Digit:", status=2),
    Case("no data", f"fit --model DM {QUICK}", r"required: (fit\.)?data", status=2),
    Case("no root", "fit --model DM --data PACS", r"arguments are required: root", status=2),
    Case("an unknown network", f"{FIT} --model.backbone Net", "no backbone 'Net'", left=CACHE),
    Case("unknown augmentation", f"{FIT} --model.augmentation blur", r"blur.*color"),
    Case(
        "a config that is not there",
        "fit --config mine.yaml",
        r"no config mine\.yaml, neither here nor among .*quickstart\.yaml",
        status=2,
    ),
    Case(
        "a config that is no YAML",
        "fit --config broken.yaml",
        r"Problems parsing config",
        lambda folder: (folder / "broken.yaml").write_text("model: ["),
        status=2,
    ),
    # Options that contradict each other.
    Case(
        "a list and a share",
        f"{FIT} --data.test_list a.txt --data.test_share 0.5",
        r"test_list names the test images: leave out test_share",
    ),
    Case(
        "a test folder and a share",
        f"{FIT} --data.root split --data.test_share 0.5",
        r"split/test holds the test images: leave out",
        split_folders,
    ),
    Case(
        "a validation folder and a share",
        f"{FIT} --data.root split --data.validation_share 0.5",
        r"validation images of its own: leave out validation_share",
        split_folders,
        left=CACHE,
    ),
    Case(
        "a domain that there is not",
        f"{FIT} --data.left_out_domain moon",
        r"no domain 'moon': give left_out_domain of drawn, seen$",
        left=CACHE,
    ),
    Case(
        "a domain left out of what is chosen",
        f"{FIT} --data.left_out_domain seen --data.test_domains [seen]",
        r"left_out_domain says .*: leave out train_domains and test_domains",
        left=CACHE,
    ),
    Case(
        "as many pseudo-domains as there are no domains",
        f"{FIT} --model.dam {{}} --data.pseudo_labels actual",
        r"2 domains \(drawn, seen\), but num_domains is 4: .* --model\.dam\.num_domains 2$",
        left=CACHE,
    ),
    Case(
        "clusters of random pseudo-domains",
        f"{FIT} --data.pseudo_labels random --data.pseudo_grouping k_means",
        r"nothing to cluster with pseudo_labels random: leave out pseudo_grouping",
    ),
    Case(
        "a misspelt baseline",
        f"{EVALUATE} --model.condensed hearding --model.ipc 1",
        r"herding",
    ),
    Case(
        "more coreset images than a class has",
        f"{EVALUATE} --model.condensed herding --model.ipc 100",
        r"class 'cat' has 18 training images, but 100 are asked for; use a smaller ipc",
        left=CACHE,
    ),
    *(
        Case(
            f"{name} where there is none",
            f"fit --model DM --data {name} --data.root own --data.cache_dir cache {QUICK}",
            rf"No {title} in own",
        )
        for name, title in (
            ("VLCS", "VLCS"),
            ("OfficeHome", "Office-Home"),
            ("DomainNet", "DomainNet"),
        )
    ),
    Case("random without ipc", f"{EVALUATE} --model.condensed random", r"give ipc with condensed"),
    Case(
        "validation without images",
        TEST.replace("test", "validate", 1),
        r"no validation images: hold some out with the data module's validation_share",
        left=CACHE,
    ),
    Case("a test of nothing", TEST, r"nothing to evaluate: .*--ckpt_path", left=RUN),
    # Files.
    Case(
        "a truncated checkpoint",
        f"{FIT} --ckpt_path run/last.ckpt",
        r"run/last\.ckpt is no checkpoint, or is damaged \(.*Give the last\.ckpt",
        cut("run/last.ckpt"),
        left=CACHE,
    ),
    Case(
        "a text as checkpoint",
        f"{TEST} --ckpt_path a.txt",
        r"a\.txt is no checkpoint, or is damaged",
        text("a.txt"),
        left=CACHE,
    ),
    Case(
        "a file of torch.save as checkpoint",
        f"{FIT} --ckpt_path x.pt",
        r"x\.pt is no checkpoint, or is damaged \(it holds something else\)",
        lambda folder: torch.save({"images": torch.ones(2)}, folder / "x.pt"),
        left=CACHE,
    ),
    *(
        Case(
            f"a checkpoint {done}, for a {command.split()[0]}",
            f"{command} --ckpt_path run/last.ckpt",
            rf"run/last\.ckpt is no checkpoint, or is damaged \({message}.*Give the last\.ckpt",
            checkpoint(change),
            left=CACHE,
        )
        for command in (FIT, TEST)
        for done, change, message in (
            ("of nothing", lambda c: [c.pop(k) for k in list(c) if k != "state_dict"], "pytorch-"),
            ("without arguments", lambda c: c.pop("hyper_parameters"), "hyper_parameters is miss"),
            ("that was made by no class", lambda c: c.update(condenser={}), "condenser: class is"),
            ("whose weights are a list", lambda c: c.update(state_dict=[1]), "state_dict is not"),
            ("without images", lambda c: c["state_dict"].clear(), "state_dict: images is missing"),
            (
                "with images that are not finite",
                lambda c: c["state_dict"]["images"].fill_(float("nan")),
                "state_dict: images has values that are not finite",
            ),
            ("without loops", lambda c: c.pop("loops"), "loops is missing"),
            (
                "whose images are a number",
                lambda c: c["state_dict"].update(images=-1),
                "state_dict: images is not what it should be",
            ),
            (
                "of complex images",
                lambda c: c["state_dict"].update(images=c["state_dict"]["images"] * 1j),
                "state_dict: images is not what it should be",
            ),
            (
                "of a spoilt optimiser",
                lambda c: c.update(optimizer_states=["SGD"]),
                "optimizer_states is not what it should be",
            ),
        )
    ),
    Case(
        "a checkpoint of weights alone, to go on with",
        f"{FIT} --ckpt_path run/last.ckpt",
        r"has only the weights, with which no fit can go on: give the last\.ckpt",
        checkpoint(weights_only),
        left=RUN,
    ),
    Case(
        "a checkpoint with the momentum of something else",
        f"{FIT} --ckpt_path run/last.ckpt --trainer.max_steps 3",
        r"the checkpoint is damaged: it has a momentum \(2,\) of something \(6, 3, 8, 8\)\. Give",
        checkpoint(
            lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=torch.ones(2))
        ),
        left=RUN,
    ),
    Case(
        "a checkpoint with a parameter that nothing has",
        f"{TEST} --ckpt_path run/last.ckpt",
        r"the checkpoint does not fit, or is damaged: .*Unexpected key.*\"more\"",
        checkpoint(lambda c: c["state_dict"].update(more=torch.ones(2))),
        left=CACHE,
    ),
    Case(
        "a condensed set as checkpoint",
        f"{TEST} --ckpt_path run/last.safetensors",
        r"is no checkpoint, or is damaged \(it holds more than plain values, or is no file .*"
        r"evaluated with model\.condensed",
        left=CACHE,
    ),
    Case(
        "a checkpoint that is not there",
        f"{TEST} --ckpt_path gone.ckpt",
        r"gone\.ckpt",
        left=CACHE,
    ),
    Case(
        "a checkpoint of another method",
        f"{EVALUATE} --model.condensed run/last.safetensors --ckpt_path run/last.ckpt",
        r"no checkpoint of an Evaluation",
        left=CACHE,
    ),
    Case(
        "a checkpoint of other shapes",
        f"{FIT} --model.ipc 1 --ckpt_path run/last.ckpt",
        r"ipc: 1 here, 2 in the checkpoint",
        left=CACHE,
    ),
    Case(
        "a truncated condensed set",
        f"{EVALUATE} --model.condensed run/last.safetensors",
        r"run/last\.safetensors is not a condensed set, or is damaged .*condense again",
        cut("run/last.safetensors", 0.9),
    ),
    Case(
        "a condensed set with images that are not finite",
        f"{EVALUATE} --model.condensed run/last.safetensors",
        r"is not a condensed set, or is damaged \(images have values that are not finite\)",
        rewritten("run/last.safetensors", lambda images: images / 0),
    ),
    Case(
        "a condensed set whose seed is a text",
        f"{EVALUATE} --model.condensed run/last.safetensors",
        r"or is damaged \(seed must be a whole number, got 'three'\)",
        rewritten("run/last.safetensors", seed='"three"'),
    ),
    Case(
        "a condensed set whose recipe has a text for options",
        f"{EVALUATE} --model.condensed run/last.safetensors",
        r"recipe: backbone_args must be a mapping of options, got 'wide'",
        rewritten("run/last.safetensors", recipe=json.dumps({"backbone_args": "wide"})),
    ),
    Case(
        "other tensors as condensed set",
        f"{EVALUATE} --model.condensed x.safetensors",
        r"x\.safetensors is not a condensed set",
        lambda folder: save_file({"weight": torch.ones(2)}, folder / "x.safetensors"),
    ),
    Case(
        "a condensed set of other classes",
        f"{EVALUATE} --model.condensed foreign.safetensors",
        r"the condensed set has class names \['ant', 'bee', 'cow'\], the data module \['cat'",
        foreign_set,
        left=CACHE,
    ),
    Case(
        "a condensed set that is not there",
        f"{EVALUATE} --model.condensed gone.safetensors",
        r"no condensed set at gone\.safetensors",
    ),
    Case(
        "a ledger that is none",
        f"{EVALUATE} --model.condensed random --model.ipc 1 --model.ledger a.txt",
        r"a\.txt is no ledger of this version",
        text("a.txt"),
        left=CACHE,
    ),
    Case(
        "a file where the run's folder should be",
        f"{FIT} --trainer.default_root_dir occupied/here",
        r"cannot make files in occupied/here: .*occupied is no folder\. Name another .*root_dir",
        in_the_way,
    ),
    Case(
        "a file where the cache should be",
        f"{FIT} --data.cache_dir occupied",
        r"cannot make files in occupied: .*is no folder\. Name another folder with .*cache_dir",
        in_the_way,
    ),
    # What the Trainer may not do.
    Case(
        "accumulated gradients",
        f"{FIT} --trainer.accumulate_grad_batches 2",
        r"accumulate_grad_batches must be 1, got 2: .*max_images",
    ),
    Case("half precision", f"{FIT} --trainer.precision 16-mixed", r"precision must .*16-mixed"),
    Case("its old name", f"{FIT} --trainer.precision 16", r"precision must be one of .*got 16"),
    Case("FSDP", f"{FIT} --trainer.strategy fsdp", r"strategy fsdp cannot .*second-.*use ddp"),
    Case("DeepSpeed", f"{FIT} --trainer.strategy deepspeed_stage_2", r"deepspeed_stage_2 cannot"),
    # DC.
    Case(
        "no published loops",
        f"{FIT_DC} --model.ipc 7",
        r"no published loops for ipc 7: give outer_loop and inner_loop \(ipc 1: 1 and 1,",
    ),
    Case("no outer loop", f"{FIT_DC} --model.outer_loop 0", "outer_loop must be .* got 0 and 1"),
    Case("no inner step", f"{FIT_DC} --model.lr_network 0", "lr_network must be above 0, got 0"),
    Case(
        "an unknown distance",
        f"{FIT_DC} --model.metric cosine",
        r"\"metric\":.*'layerwise_cosine', 'mse', 'cos'",
        status=2,
    ),
    Case(
        "fewer classes than pseudo-domains for the second network",
        f"{FIT_DC} --model.dam.num_domains 4 --model.domain_outputs classes",
        r"second network 3 outputs, too few for dam\.num_domains 4; use domains",
        left=CACHE,
    ),
    # MTT and its experts.
    Case("a student of no step", f"{FIT_MTT} --model.student_steps 0", "student_steps must be at"),
    Case("a step size of 0", f"{FIT_MTT} --model.initial_step_size 0", "initial_step_size must be"),
    Case(
        "experts for less long than is read",
        f"{FIT_MTT} --model.experts.epochs 2 --model.max_start_epoch 3",
        r"experts\.epochs is 2, but max_start_epoch 3 and expert_epochs 1 read 3: raise it",
    ),
    Case(
        "experts that were trained for less long",
        f"{GIVEN_EXPERTS} --model.max_start_epoch 3",
        r"experts in experts/class were trained 1 epoch.*read 3: train them on with Experts",
        left=CACHE,
    ),
    Case(
        "experts of another backbone",
        f"{GIVEN_EXPERTS} --model.backbone_args.width 5",
        r"in experts/class are others than .*: backbone_args .*'width': 4.* there, .*'width': 5",
        left=CACHE,
    ),
    Case(
        "experts of another recipe",
        f"{GIVEN_EXPERTS} --model.experts.lr 0.1",
        r"in experts/class are others than .*: lr 0\.01 there, 0\.1 here\. Use their",
        left=CACHE,
    ),
    Case(
        "experts of other images",
        f"{GIVEN_EXPERTS} --data.image_size 9",
        r"in experts/class are others than .*image_shape \[3, 8, 8\] there, \[3, 9, 9\] here",
        left=CACHE,
    ),
    Case(
        "a truncated expert",
        GIVEN_EXPERTS,
        r"experts/class/expert_0001\.safetensors is no expert, or is damaged \(.*: delete it",
        cut("experts/class/expert_0001.safetensors"),
        left=CACHE,
    ),
    Case(
        "an expert with a header nested too deep",
        GIVEN_EXPERTS,
        r"experts/class/expert_0001\.safetensors is no expert, or is damaged \(.*: delete it",
        rewritten("experts/class/expert_0001.safetensors", description="[" * 100_000),
        left=CACHE,
    ),
    Case(
        "a text as expert",
        f"{EXPERTS} --model.folder experts",
        r"experts/class/expert_0000\.safetensors is no expert, or is damaged \(.*: delete it",
        text("experts/class/expert_0000.safetensors"),
        left=CACHE,
    ),
    Case(
        "steps for experts",
        f"{EXPERTS} --trainer.max_steps 2",
        r"Experts stop by themselves, after 1 epochs: leave out max_steps",
        left=CACHE,
    ),
    Case("no expert", f"{FIT_MTT} --model.experts.count 0", r"experts\.count must be at least 1"),
    Case(
        "an unknown option of experts",
        f"{FIT_MTT} --model.experts.counts 3",
        r"\"experts\": Unexpected keys: \{'counts'\}",
        status=2,
    ),
    Case(
        "batch normalisation with MTT",
        f"{FIT_MTT} --model.backbone_args.norm batchnorm",
        r"with batch normalisation cannot be an expert: .*use norm: instancenorm",
        left=CACHE,
    ),
    Case(
        "batch normalisation with Experts",
        f"{EXPERTS} --model.backbone_args.norm batchnorm",
        r"with batch normalisation cannot be an expert: .*use norm: instancenorm",
        left=CACHE,
    ),
    Case(
        "experts that diverge",
        f"{FIT_MTT} --model.experts.lr 1e38 --model.max_start_epoch 2",
        r"expert 0 has parameters that are not finite after epoch \d: lower .* lr \(now 1e\+38\)",
        left=CACHE,
    ),
    Case(
        "a test of no experts",
        TEST_EXPERTS,
        r"2 of 2 experts are missing in cache/experts/ImageFolder-class-\w+: fit them first",
        left=CACHE,
    ),
    Case(
        "a checkpoint of DM for MTT",
        f"{GIVEN_EXPERTS} --ckpt_path run/last.ckpt",
        r"this is a checkpoint of DM, not of MTT; give the class it was made with",
        left=CACHE,
    ),
    # Whitening.
    Case(
        "images too large to be whitened",
        f"{FIT_MTT} --data.zca true --data.image_size 64",
        r"3 x 64 x 64 = 12288 values cannot be whitened, the limit is 3072: set zca to false",
        left=CACHE,
    ),
    Case(
        "whitened images for a checkpoint of others",
        f"{FIT} --data.zca true --ckpt_path run/last.ckpt",
        r"the data have zca True, those of the checkpoint False; give --data\.zca false",
        left=(*CACHE, "cache/zca-*"),
    ),
    # Runs that diverge.
    Case("no patience", f"{FIT} --model.max_skipped 0", "max_skipped must be at least 1, got 0"),
    Case("no loss allowed", f"{FIT} --model.max_loss 0", "max_loss must be above 0, got 0"),
    Case(
        "images that begin beyond their limit",
        f"{FIT} --model.max_value 2",
        r"the images begin with values up to 3\.\d+, beyond max_value 2\.0: raise it",
        left=RUN,
    ),
    Case(
        "a step size far too high",
        f"{FIT} --model.lr_images 1e30 --model.max_skipped 2",
        r"in 2 steps in a row .*beyond max_value: 2 times\)\. Try a smaller lr_images "
        r"\(now 1e\+30\), or init: real\. .*/lightning_logs/version_0/condensed\.safetensors$",
        left=(*RUN, "lightning_logs/version_0/condensed.safetensors"),
    ),
]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dam_lightning.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Intact images, a finished run and two experts."""
    folder = tmp_path_factory.mktemp("ground")
    fill(folder / "own", TWO_DOMAINS)
    assert run(shlex.split(FIT), folder).returncode == 0
    shutil.move(folder / "lightning_logs" / "version_0", folder / "run")
    assert run([*shlex.split(EXPERTS), "--model.folder", "experts"], folder).returncode == 0
    shutil.rmtree(folder / "lightning_logs")
    shutil.rmtree(folder / "cache")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check_left(before: dict[str, bytes | None], folder: Path, left: tuple[str, ...]) -> None:
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    new = set(after) - set(before)
    files = {name for name in new if after[name] is not None}
    assert not {name for name in files if not any(fnmatch(name, pattern) for pattern in left)}
    for pattern in left:
        assert any(fnmatch(name, pattern) for name in files), f"nothing was left at {pattern}"
    # No folder is left empty.
    assert all(any(file.startswith(f"{name}/") for file in files) for name in new - files)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.done.replace(" ", "-"))
def test_bad_input(
    case: Case,
    ground: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(ground, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    case.arrange(folder)
    before = contents(folder)
    if case.status == 0:
        # Notes go where the standard error was when Lightning was imported.
        done = run(shlex.split(case.command), folder)
        check_left(before, folder, case.left)
        assert done.returncode == 0
        assert re.search(case.message, done.stderr)
        return
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(case.command))
    check_left(before, folder, case.left)
    assert stop.value.code == case.status
    said = capfd.readouterr().err
    assert re.search(f"^error: .*{case.message}", said.splitlines()[-1])
    assert "Traceback" not in said


def test_there_are_rows_enough_and_no_two_alike() -> None:
    assert len({case.done for case in TABLE}) == len(TABLE) >= 40


@pytest.mark.parametrize("flag", [[], ["--traceback"]])
def test_a_process_ends_with_the_line_and_the_status(ground: Path, flag: list[str]) -> None:
    """As the shell sees it; the place in the code is shown on request."""
    done = run([*shlex.split(FIT), *flag, "--data.root", "gone"], ground)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "There is no folder gone. Give as root one with images" in last
    assert ("Traceback" in done.stderr) == bool(flag)


def test_experts_in_two_processes(ground: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(ground, folder)
    before = contents(folder)
    done = run([*shlex.split(EXPERTS), "--trainer.devices", "2"], folder)
    check_left(before, folder, CACHE)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Experts are trained in one process: use devices=1")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allo"),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        MemoryError(),
    ],
    ids=["CUDA", "MPS", "CPU", "NumPy", "Python"],
)
def test_out_of_memory(
    error: Exception,
    ground: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line, with what there is to be lowered."""
    monkeypatch.chdir(ground)
    monkeypatch.setattr(sys, "argv", ["cli.py"])

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("dam_lightning.methods.dm.DM.matching_loss", full)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(FIT), "--trainer.default_root_dir", str(tmp_path)])
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("error: out of memory: give a smaller --model.max_images")
    assert all(
        name in line
        for name in ("batch_real", "image_size", "network", str(error)[:20] or "MemoryError")
    )


def test_a_defect_shows_where_it_is(
    ground: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only what is raised of bad input is cut down to its message."""
    monkeypatch.chdir(ground)
    monkeypatch.setattr(sys, "argv", ["cli.py"])

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dam_lightning.methods.dm.DM.network_state", broken)
    with pytest.raises(ZeroDivisionError):
        main([*shlex.split(FIT), "--trainer.default_root_dir", str(tmp_path)])
