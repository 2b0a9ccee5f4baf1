"""What commands say."""

import pytest

from dam_lightning.report.commands import NETWORKS, read, without_dam

DM_DAM = {
    "model": "DM",
    "model.ipc": "1",
    "model.dam": "on",
    "data": "PACS",
    "trainer.max_steps": "20000",
}
DM = {key: value for key, value in DM_DAM.items() if key != "model.dam"}


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("dam-lightning test --config pacs/dm_dam_ipc1.yaml", DM_DAM),
        ("python cli.py test -c configs/pacs/dm_dam_ipc1.yaml", DM_DAM),
        ("python -m dam_lightning.cli test --config=./configs/pacs/dm_dam_ipc1.yaml", DM_DAM),
        # Where, how fast, with which seed.
        (
            "dam-lightning test --data.root '/my data' --seed_everything=3 --model.seed 3 --config "
            "pacs/dm_dam_ipc1.yaml --trainer.logger false --trainer.logger.save_dir=x --traceback "
            "--trainer.accelerator gpu --trainer.devices=2 --trainer.strategy ddp --ckpt_path a "
            "--trainer.default_root_dir r --model.compile false --model.max_images 512 "
            "--model.ledger l.csv --data.cache_dir c --data.download true "
            "--trainer.callbacks+=ModelCheckpoint --model.precision float32",
            DM_DAM,
        ),
        # With DAM or without, by another config.
        ("dam-lightning test --config pacs/dm_ipc1.yaml", DM),
        ("dam-lightning test --config pacs/dm_dam_ipc1.yaml --model.dam null", DM),
        ("dam-lightning test --config pacs/dm_ipc1.yaml --model.dam '{}'", DM_DAM),
        (
            "dam-lightning test --config pacs/dm_ipc1.yaml --model.dam.num_domains 5",
            {**DM_DAM, "model.dam.num_domains": "5"},
        ),
        (
            "dam-lightning test --config pacs/dm_dam_ipc1.yaml "
            "--model.init_args.dam '{\"num_domains\": 5}'",
            {**DM_DAM, "model.dam.num_domains": "5"},
        ),
        # Without augmentation, which only DC is by itself.
        (
            "dam-lightning test --config pacs/dm_ipc1.yaml --model.augmentation null "
            "--model.recipe '{augmentation: null, epochs: 9}'",
            {
                **DM,
                "model.augmentation": "null",
                "model.recipe.augmentation": "null",
                "model.recipe.epochs": "9",
            },
        ),
        (
            "dam-lightning test --config pacs/dc_ipc1.yaml --model.augmentation null",
            {**DM, "model": "DC", "trainer.max_steps": "1000"},
        ),
        # A limit that is on by default.
        (
            "dam-lightning test --config pacs/dm_ipc1.yaml --model.max_loss null",
            {**DM, "model.max_loss": "null"},
        ),
        # Own images are those of their folder, and own configs no shipped ones.
        (
            "dam-lightning test --config pacs/dm_dam_ipc1.yaml --data ImageFolder --data.root a",
            {**DM_DAM, "data": "ImageFolder", "data.root": "a"},
        ),
        (
            "dam-lightning test --config /own/configs/pacs/dm_ipc1.yaml",
            {"config": "/own/configs/pacs/dm_ipc1.yaml"},
        ),
        # A rehearsal is no result.
        (
            "dam-lightning test --config pacs/dm_ipc1.yaml --trainer.fast_dev_run true",
            {**DM, "trainer.fast_dev_run": "true"},
        ),
        # Values that are equal.
        (
            "dam-lightning test --config pacs/dm_dam_ipc1.yaml --model.dam.weight 1e-2 "
            "--data.test_domains sketch --trainer.limit_test_batches 2.0",
            {
                **DM_DAM,
                "model.dam.weight": "0.01",
                "data.test_domains": "sketch",
                "trainer.limit_test_batches": "2",
            },
        ),
        (
            "dam-lightning test --trainer.limit_test_batches=2 --data.test_domains=[sketch] "
            "--model.dam.weight=0.010 --config pacs/dm_dam_ipc1.yaml",
            {
                **DM_DAM,
                "model.dam.weight": "0.01",
                "data.test_domains": "sketch",
                "trainer.limit_test_batches": "2",
            },
        ),
        (
            "dam-lightning test --config evaluate/baseline.yaml --model.condensed random "
            "--model.ipc 1 --data CIFAR10",
            {
                "model": "Evaluation",
                "model.condensed": "random",
                "model.recipe.backbone": "ConvNet",
                "model.ipc": "1",
                "data": "CIFAR10",
            },
        ),
        (
            "dam-lightning test --config run/config.yaml --model my.module.Own --model.x true",
            {"config": "run/config.yaml", "model": "Own", "model.x": "true"},
        ),
    ],
)
def test_settings(command: str, settings: dict[str, str]) -> None:
    assert read(command).settings == settings


@pytest.mark.parametrize(
    "command", ["", "python train.py", "dam-lightning validate --config a", "cli.py test --a 'b"]
)
def test_what_is_no_command_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match=r"neither fit nor test|No closing quotation"):
        read(command)


def test_a_word_between_options_is_refused() -> None:
    with pytest.raises(ValueError, match="2 stands where an option should"):
        read("cli.py test --model.ipc 1 2")


def test_a_command_is_shown_without_what_does_not_matter() -> None:
    command = read(
        "cli.py test --data.root D --model.dam null --config configs/pacs/dm_dam_ipc1.yaml "
        "--data.batch_real=64"
    )
    assert str(command) == "pacs/dm_dam_ipc1.yaml --model.dam null --data.batch_real 64"


def test_without_dam() -> None:
    command = "cli.py test --config pacs/{}.yaml --data.batch_real 64 --model.recipe.num_networks 3"
    of_domains = " --data.pseudo_labels random --model.dam.weight 1 --data.fft_log true"
    of_domains += " --model.augment_views false --model.batch_syn_domain 3"
    found = without_dam(read(command.format("dm_dam_ipc1") + of_domains).settings)
    assert found == read(command.format("dm_ipc1")).settings
    assert found[NETWORKS] == "3"
