"""Fetching and unpacking: interrupted, damaged, from strange servers, on full disks."""

import shutil
import stat
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dam_lightning.data import archives, downloads, scratch
from dam_lightning.data.archives import unpack_folder
from dam_lightning.data.downloads import Remote, downloaded
from dam_lightning.data.scratch import made_folder, one_at_a_time, scratch_folder
from tests.data.conftest import Server, write_zip

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def remote(server: Server) -> Remote:
    (server.folder / "set.zip").write_bytes(CONTENT)
    return server.remote("set.zip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def fetch(remote: Remote, folder: Path) -> bytes:
    with downloaded(remote, folder) as file:
        return file.read_bytes()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_removed_after_use(
    server: Server, remote: Remote, folder: Path
) -> None:
    assert fetch(remote, folder) == CONTENT
    assert server.requests == [("set.zip", None)]
    assert left(folder) == []


def test_a_connection_that_breaks_off_is_gone_on_with(
    server: Server, remote: Remote, folder: Path
) -> None:
    server.cut = [4000, 1000]
    assert fetch(remote, folder) == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=4000-", "bytes=5000-"]


def test_what_a_killed_process_left_is_gone_on_with(
    server: Server, remote: Remote, folder: Path
) -> None:
    (folder / ".set.zip.part").write_bytes(CONTENT[:700])
    assert fetch(remote, folder) == CONTENT
    assert server.requests == [("set.zip", "bytes=700-")]


def test_a_whole_file_that_was_not_used_is_not_fetched_again(
    server: Server, remote: Remote, folder: Path
) -> None:
    with pytest.raises(RuntimeError), downloaded(remote, folder):
        raise RuntimeError
    assert fetch(remote, folder) == CONTENT
    assert len(server.requests) == 1


def test_a_server_without_ranges_sends_all(server: Server, remote: Remote, folder: Path) -> None:
    server.ranges = False
    (folder / ".set.zip.part").write_bytes(CONTENT[:700])
    assert fetch(remote, folder) == CONTENT
    assert server.requests == [("set.zip", "bytes=700-")]


def test_where_nothing_comes_what_is_there_is_kept(
    server: Server, remote: Remote, folder: Path
) -> None:
    server.cut = [300, 0]
    with pytest.raises(
        OSError, match=r"set\.zip cannot be downloaded .*300 of 10240 bytes .* Run it again"
    ):
        fetch(remote, folder)
    assert left(folder) == [".set.zip.part"]
    assert (folder / ".set.zip.part").read_bytes() == CONTENT[:300]


def test_a_file_that_is_gone_is_named(server: Server, remote: Remote, folder: Path) -> None:
    (server.folder / "set.zip").unlink()
    with pytest.raises(OSError, match=r"set\.zip cannot be downloaded \(HTTP Error 404"):
        fetch(remote, folder)
    assert left(folder) == []


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT * 2], ids=["other", "longer"])
def test_what_is_not_the_original_is_discarded(
    server: Server, remote: Remote, folder: Path, content: bytes
) -> None:
    (server.folder / "set.zip").write_bytes(content)
    with pytest.raises(OSError, match=r"is not the original, which has 10240 bytes"):
        fetch(remote, folder)
    assert left(folder) == []


def test_what_was_left_of_another_file_is_fetched_anew(
    server: Server, remote: Remote, folder: Path
) -> None:
    (folder / ".set.zip.part").write_bytes(b"x" * 700)
    assert fetch(remote, folder) == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=700-", None]


def test_a_file_of_the_users_is_used_and_left(server: Server, remote: Remote, folder: Path) -> None:
    (folder / "set.zip").write_bytes(CONTENT)
    assert fetch(remote, folder) == CONTENT
    assert server.requests == []
    (folder / "set.zip").write_bytes(CONTENT[:-1])
    assert fetch(remote, folder) == CONTENT
    assert len(server.requests) == 1
    assert (folder / "set.zip").read_bytes() == CONTENT[:-1]


def test_a_download_without_room_is_not_begun(
    server: Server, remote: Remote, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(OSError, match=r"no room for set\.zip .* name another folder with root"):
        fetch(remote, folder)
    assert server.requests == []
    (folder / ".set.zip.part").write_bytes(CONTENT[:700])
    assert fetch(remote, folder) == CONTENT


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip of set/one.txt and set/inner/two.txt."""
    packed = tmp_path / "packed" / "set"
    (packed / "inner").mkdir(parents=True)
    (packed / "one.txt").write_text("one" * 100)
    (packed / "inner" / "two.txt").write_text("two" * 100)
    write_zip(tmp_path / "set.zip", packed)
    return tmp_path / "set.zip"


def test_an_archive_is_unpacked(archive: Path, folder: Path) -> None:
    unpack_folder(archive, "set", folder)
    assert left(folder) == ["set"]
    assert (folder / "set" / "inner" / "two.txt").read_text() == "two" * 100


@pytest.mark.parametrize(
    "name", ["../evil", "set/../../evil", "/tmp/evil", "..\\evil", "C:/evil", "set/a/../../../evil"]
)
def test_a_member_outside_is_refused(archive: Path, folder: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, "evil")
    with pytest.raises(
        ValueError, match=r"set\.zip is not unpacked: its member .*evil lies outside"
    ):
        unpack_folder(archive, "set", folder)
    assert left(folder) == []
    assert not list(folder.parent.rglob("*evil*"))


def test_a_link_is_refused(archive: Path, folder: Path) -> None:
    member = zipfile.ZipInfo("set/link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(member, "/etc")
    with pytest.raises(ValueError, match=r"its member set/link is a link"):
        unpack_folder(archive, "set", folder)
    assert left(folder) == []


@pytest.mark.parametrize("damage", ["bytes", "end"])
def test_a_damaged_archive_is_refused(archive: Path, folder: Path, damage: str) -> None:
    content = bytearray(archive.read_bytes())
    if damage == "bytes":
        with zipfile.ZipFile(archive) as packed:
            start = packed.getinfo("set/one.txt").header_offset + 30 + len("set/one.txt")
        content[start : start + 4] = b"\xff\xff\xff\xff"
    else:
        del content[-30:]
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip is no intact zip archive"):
        unpack_folder(archive, "set", folder)
    assert left(folder) == []


def test_an_archive_of_something_else_is_refused(archive: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"set\.zip holds no folder other"):
        unpack_folder(archive, "other", folder)
    assert left(folder) == []


def test_unpacking_without_room_is_not_begun(
    archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    with pytest.raises(OSError, match=r"no room to unpack .*set\.zip"):
        unpack_folder(archive, "set", folder)
    assert left(folder) == []


def test_what_was_interrupted_while_unpacking_is_not_taken_for_complete(
    archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = zipfile.ZipFile._extract_member
    removed = shutil.rmtree

    def killed(self: zipfile.ZipFile, member: str, *rest: object) -> str:
        if "two" in str(member):
            # As a killed process, which removes nothing.
            monkeypatch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
            raise KeyboardInterrupt
        return extract(self, member, *rest)

    monkeypatch.setattr(zipfile.ZipFile, "_extract_member", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack_folder(archive, "set", folder)
    (remains,) = folder.iterdir()
    assert remains.name.startswith(".unpacking-")
    monkeypatch.setattr(zipfile.ZipFile, "_extract_member", extract)
    monkeypatch.setattr(scratch.shutil, "rmtree", removed)
    unpack_folder(archive, "set", folder)
    assert left(folder) == ["set"]
    assert (folder / "set" / "inner" / "two.txt").is_file()


def test_scratch_folders_in_use_stay(folder: Path) -> None:
    (folder / ".download-dead" / "inner").mkdir(parents=True)
    with scratch_folder(folder, ".download-") as first:
        (first / "file").write_text("1")
        assert len(left(folder)) == 1
        with scratch_folder(folder, ".download-") as second:
            assert second != first
            assert (first / "file").is_file()
        assert (first / "file").is_file()
    assert left(folder) == []


def test_one_process_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    order: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr(scratch, "rank_zero_info", lambda line: (said.append(line), waiting.set()))

    def second() -> None:
        with one_at_a_time(folder):
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(folder):
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert said == [f"Waiting for another process, which downloads into {folder}"]
    assert left(folder) == []


def test_a_place_that_cannot_be_written_to_is_named(folder: Path) -> None:
    (folder / "file").touch()
    with (
        pytest.raises(OSError, match=r"file is no folder\. Name another folder with root"),
        made_folder(folder / "file" / "data"),
    ):
        pass


def test_folders_made_in_vain_are_removed(folder: Path) -> None:
    def fail(*others: str) -> None:
        with made_folder(folder / "a" / "b"):
            for name in others:
                (folder / "a" / name).touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert left(folder) == []
    with pytest.raises(RuntimeError):
        fail("file")
    assert left(folder) == ["a"]
    assert left(folder / "a") == ["file"]
