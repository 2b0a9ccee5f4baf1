"""Several processes of the command line: on two nodes, and where one of them dies.

A node is an agent of ``torchrun`` on this machine.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dam_lightning import CondensedSet
from dam_lightning.cli import main
from tests.data.test_image_folder import TWO_DOMAINS, fill

COMMAND = (
    "fit --model DM --model.ipc 2 --model.dam.num_domains 2 --model.seed 0 "
    "--model.backbone_args '{width: 8, depth: 1}' --data ImageFolder --data.root own "
    "--data.image_size 8 --data.cache_dir cache --data.batch_real 2 --data.seed 0 "
    "--trainer.accelerator cpu --trainer.max_steps 10"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def agent(node: int, port: int, folder: Path) -> "subprocess.Popen[str]":
    """One of the commands that README gives, one for each node."""
    launch = (
        f"-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank {node} "
        f"--master-addr 127.0.0.1 --master-port {port} -m dam_lightning.cli {COMMAND} "
        "--trainer.num_nodes 2 --trainer.devices 1 --trainer.strategy ddp"
    )
    return subprocess.Popen(
        [sys.executable, *shlex.split(launch)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_nodes_equal_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "own", TWO_DOMAINS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    main(shlex.split(COMMAND))
    port = free_port()
    agents = [agent(node, port, tmp_path) for node in range(2)]
    try:
        said = [process.communicate(timeout=300)[1] for process in agents]
    finally:
        for process in agents:
            process.kill()
    assert [process.returncode for process in agents] == [0, 0], "\n".join(said)
    alone, shared = (
        CondensedSet.load(
            tmp_path / "lightning_logs" / f"version_{version}" / "condensed.safetensors"
        ).images
        for version in range(2)
    )
    assert float((alone - shared).norm() / alone.norm()) < 1e-5
    assert not torch.equal(alone, torch.zeros_like(alone))
    # Only the first process writes.
    assert not (tmp_path / "lightning_logs" / "version_2").exists()


def children(pid: int) -> list[int]:
    """Processes that a process has started, and not yet seen the end of."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def waited_for(what: Callable[[], bool], seconds: float) -> bool:
    """Whether something has come true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("dies", ["the first", "the second"])
def test_a_process_that_dies_takes_the_other_with_it(tmp_path: Path, dies: str) -> None:
    """Within a minute, with a message, and with the last checkpoint as it was."""
    fill(tmp_path / "own", TWO_DOMAINS)
    command = COMMAND.replace("--trainer.max_steps 10", "--trainer.max_steps 1000000 ")
    first = subprocess.Popen(
        [
            *(sys.executable, "-m", "dam_lightning.cli"),
            *shlex.split(f"{command} --data.steps_per_epoch 5 --model.compile false"),
            *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    second: list[int] = []
    try:
        last = tmp_path / "lightning_logs" / "version_0" / "last.ckpt"
        assert waited_for(last.exists, 120)
        second = children(first.pid)
        assert len(second) == 1
        os.kill(first.pid if dies == "the first" else second[0], signal.SIGKILL)
        _, said = first.communicate(timeout=60)
        assert first.returncode != 0
        assert waited_for(lambda: not Path(f"/proc/{second[0]}").exists(), 60)
        assert "another process of this run has ended" in said or "terminated with code" in said
        assert "Traceback" not in said
        assert torch.load(last, weights_only=True)["global_step"] % 5 == 0
    finally:
        for pid in (first.pid, *second):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
