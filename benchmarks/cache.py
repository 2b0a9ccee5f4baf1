"""The command ``python -m benchmarks.cache``: a dataset of DomainNet's size, from files to a step.

It writes a tree of JPEGs in DomainNet's layout, then measures, each in a process of its own:
decoding a sample of it into a cache against two processes that only decode and resize; building the
whole cache, killed in the middle and resumed; opening it; and one DM+DAM step on it.
"""

import argparse
import io
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["generate", "main"]

_CLASSES = 345
_VARIANTS = 500
"""Different images; the others are copies."""
_SIDES = {"small": (64, 160), "large": (200, 500)}
"""Lowest and highest side of an image in pixels; DomainNet's are large, and 30 KB on average."""
_SIZE = 64
_WORKERS = 2


def generate(folder: Path, count: int) -> None:
    """Write a tree of so many JPEGs, or leave one that is complete."""
    from dam_lightning.data import DomainNet

    root = folder / "domain_net"
    done = folder / f"{count}.done"
    if done.exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    encoded = _encoded("small")
    cells = [
        root / domain / f"class_{label:03d}"
        for domain in DomainNet.domain_names
        for label in range(_CLASSES)
    ]
    for cell in cells:
        cell.mkdir(parents=True)
    for number in range(count):
        (cells[number % len(cells)] / f"{number:06d}.jpg").write_bytes(encoded[number % _VARIANTS])
    done.touch()


def _encoded(kind: str) -> list[bytes]:
    """Different JPEGs."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(_VARIANTS):
        height, width = generator.integers(*_SIDES[kind], 2)
        # Smooth with some noise, so that files are about as large as those of photos.
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 6, (height, width, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def _only_decode(paths: Sequence[str]) -> int:
    total = 0
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
        total += np.asarray(small).nbytes
    return total


def _sampled(folder: Path, kind: str, count: int, repeats: int) -> None:
    """Decoding images: the package against processes that keep nothing."""
    from dam_lightning.data import ListedFile
    from dam_lightning.data.building import build_splits

    seconds: dict[str, list[float]] = {"package": [], "only decoding": []}
    with (
        tempfile.TemporaryDirectory(dir=folder) as sample,
        ProcessPoolExecutor(_WORKERS, multiprocessing.get_context("spawn")) as pool,
    ):
        root = Path(sample)
        encoded = _encoded(kind)
        names = [f"{number:06d}.jpg" for number in range(count)]
        for number, name in enumerate(names):
            (root / name).write_bytes(encoded[number % _VARIANTS])
        paths = [f"{root}/{name}" for name in names]
        listed = {"train": [ListedFile(name, 0, 0) for name in names]}
        list(pool.map(_only_decode, [paths[:1]] * _WORKERS))  # starts them
        for turn in range(repeats + 1):
            start = time.perf_counter()
            chunks = [paths[first : first + 256] for first in range(0, count, 256)]
            list(pool.map(_only_decode, chunks))
            decoding = time.perf_counter() - start
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                start = time.perf_counter()
                build_splits(Path(cache), root, listed, ["all"], _SIZE)
                package = time.perf_counter() - start
            if turn:  # the first warms up
                seconds["package"].append(package)
                seconds["only decoding"].append(decoding)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    size = sum(map(len, encoded)) / len(encoded) / 1000
    rates = ", ".join(f"{name} {count / median:.0f}" for name, median in medians.items())
    share = medians["only decoding"] / medians["package"]
    print(
        f"{count} {kind} images of {size:.0f} KB, a second: {rates}; the package reaches "
        f"{share:.0%} of two processes that only decode and resize\n"
    )


def _peak_gib(whose: int) -> float:
    return resource.getrusage(whose).ru_maxrss / 2**20


def _part(name: str, folder: Path, cache: str) -> None:
    """What runs in a process of its own."""
    from dam_lightning import DM
    from dam_lightning.data import DomainNet

    data = DomainNet(str(folder), cache_dir=cache, seed=0)
    start = time.perf_counter()
    data.prepare_data()
    if name != "build":
        data.setup()
        print(f"opened {len(data.train)} + {len(data.test)} images", end=" ")
    print(f"in {time.perf_counter() - start:.1f} s")
    if name == "step":
        from lightning import Trainer

        start = time.perf_counter()
        data.setup_domains(4)
        print(f"pseudo-domains in {time.perf_counter() - start:.1f} s")
        module = DM(ipc=1, dam={}, backbone_args={"depth": 4}, seed=0)
        trainer = Trainer(
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        start = time.perf_counter()
        trainer.fit(module, datamodule=data)
        print(
            f"one DM+DAM step, {data.num_classes} classes, in {time.perf_counter() - start:.1f} s"
        )
    print(
        f"peak memory: {_peak_gib(resource.RUSAGE_SELF):.1f} GiB, "
        f"of a worker {_peak_gib(resource.RUSAGE_CHILDREN):.1f} GiB (mapped files included)"
    )


def _run(name: str, folder: Path, cache: str, kill_after: float | None = None) -> None:
    command = [sys.executable, "-m", "benchmarks.cache", "--folder", str(folder)]
    print(f"{name}:", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--part", name, "--cache", cache])
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    print(f"ended with {code} after {time.perf_counter() - start:.1f} s, imports included\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the tree and the cache")
    parser.add_argument("--images", type=int, default=586_575)
    parser.add_argument("--sample", type=int, default=40_000, help="images of the comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kill-after", type=float, default=90, help="seconds of the first build")
    parser.add_argument("--part", choices=("build", "start", "step"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part is not None:
        _part(given.part, given.folder, given.cache)
        return
    start = time.perf_counter()
    generate(given.folder, given.images)
    print(f"{given.images} images are there, after {time.perf_counter() - start:.0f} s\n")
    for kind, share in (("small", 1), ("large", 10)):
        _sampled(given.folder, kind, given.sample // share, given.repeats)
    cache = str(given.folder / "cache")
    shutil.rmtree(cache, ignore_errors=True)
    _run("build", given.folder, cache, given.kill_after)
    for name in ("build", "start", "step"):
        _run(name, given.folder, cache)


if __name__ == "__main__":
    main()
