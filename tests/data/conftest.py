"""Tiny copies of datasets in the layouts they are passed around in, and a server to fetch from."""

import hashlib
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100 as OriginalCIFAR100

from dam_lightning.data import FolderDataModule
from dam_lightning.data.downloads import Remote


def write_images(root: Path, paths: Iterable[str], size: int = 8) -> None:
    """An image at every path, all different."""
    generator = np.random.default_rng(0)
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def ready(tmp_path: Path) -> Callable[..., Any]:
    """Makes a data module of 8x8 pixels with its cache in the test's folder, and sets it up."""

    def make(kind: type[FolderDataModule], root: Path, **options: Any) -> FolderDataModule:
        options = {"image_size": 8, "cache_dir": str(tmp_path / "cache"), **options}
        data = kind(str(root), **options)
        data.prepare_data()
        data.setup()
        return data

    return make


def named(data: Any, split: str) -> set[tuple[str, str, str]]:
    """(path, class, domain) of every image of a split."""
    images = getattr(data, split)
    assert len(images) == len(set(images.paths))
    return {
        (path, data.class_names[label], data.domain_names[domain])
        for path, label, domain in zip(
            images.paths, images.labels.tolist(), images.domains.tolist(), strict=True
        )
    }


class Server:
    """Sends the files of a folder, whole or from some byte on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.requests: list[tuple[str, str | None]] = []
        """Name and range of each request."""
        self.ranges = True
        """Whether requests of a range are understood."""
        self.cut: list[int] = []
        """After how many bytes the connections to come break off."""

    def remote(self, name: str) -> Remote:
        """The file, as it is now."""
        content = (self.folder / name).read_bytes()
        return Remote(f"{self.address}/{name}", len(content), hashlib.md5(content).hexdigest())

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, asked = handler.path.removeprefix("/"), handler.headers["Range"]
        self.requests.append((name, asked))
        file = self.folder / name
        if not file.is_file():
            handler.send_error(404)
            return
        content = file.read_bytes()
        start = 0
        if asked and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        last = self.cut.pop(0) if self.cut else len(content)
        handler.wfile.write(content[start : start + last])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the folder ``server``."""
    (tmp_path / "server").mkdir(exist_ok=True)
    served = Server(tmp_path / "server")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        served.address = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        listening.shutdown()


def write_zip(archive: Path, folder: Path) -> None:
    """Pack a folder, by its name."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder.parent))


@pytest.fixture
def tiny_cifar100(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds a CIFAR-100 of 300 + 200 images, which can be downloaded too."""
    inner = tmp_path / "data" / "cifar-100-python"
    inner.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 300), ("test", 200)):
        batch = {
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": generator.permutation(np.arange(count) % 100).tolist(),
            "coarse_labels": [0] * count,
        }
        (inner / name).write_bytes(pickle.dumps(batch))
    fine = [f"class {number}" for number in range(100)]
    (inner / "meta").write_bytes(pickle.dumps({"fine_label_names": fine}))
    archive = server.folder / OriginalCIFAR100.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(inner, inner.name)

    def md5(name: str) -> str:
        return hashlib.md5((inner / name).read_bytes()).hexdigest()

    monkeypatch.setattr(OriginalCIFAR100, "train_list", [["train", md5("train")]])
    monkeypatch.setattr(OriginalCIFAR100, "test_list", [["test", md5("test")]])
    monkeypatch.setattr(OriginalCIFAR100, "meta", {**OriginalCIFAR100.meta, "md5": md5("meta")})
    remote = server.remote(archive.name)
    monkeypatch.setattr(OriginalCIFAR100, "tgz_md5", remote.md5)
    monkeypatch.setattr(OriginalCIFAR100, "url", remote.url)
    return tmp_path / "data"
