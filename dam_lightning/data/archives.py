"""Unpacking zip archives without trusting them."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.scratch import scratch_folder

__all__ = ["unpack_folder"]

_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)
"""Kinds of members that are unpacked; 0 where the archive does not say."""


def unpack_folder(archive: Path, name: str, parent: Path) -> None:
    """Unpack the folder that an archive holds, so that it is in its place whole or not at all.

    Args:
        archive: a zip archive.
        name: of the folder in it.
        parent: the folder that it is put into; there must be none of its name with anything in it.

    Raises:
        ValueError: the archive is damaged, or has members that lie elsewhere than they should or
            are neither files nor folders. Nothing is unpacked then.
        OSError: the disk is full, or cannot be written to.
    """
    with scratch_folder(parent, ".unpacking-") as beside:
        try:
            with zipfile.ZipFile(archive) as packed:
                _check(packed, archive, beside)
                rank_zero_info(f"Unpacking {len(packed.namelist())} files into {parent / name}")
                packed.extractall(beside)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(
                f"{archive} is no intact zip archive ({error}): remove it to have it fetched anew"
            ) from error
        if not (beside / name).is_dir():
            raise ValueError(f"{archive} holds no folder {name}: it is not the original")
        (beside / name).rename(parent / name)


def _check(packed: zipfile.ZipFile, archive: Path, folder: Path) -> None:
    """Look at every member before anything is written."""
    for member in packed.infolist():
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise ValueError(
                f"{archive} is not unpacked: its member {member.filename} lies outside of it"
            )
        if stat.S_IFMT(member.external_attr >> 16) not in _PLAIN:
            raise ValueError(
                f"{archive} is not unpacked: its member {member.filename} is a link or the like"
            )
    needed = sum(member.file_size for member in packed.infolist())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"no room to unpack {archive}: it takes {needed / 2**20:.0f} MiB and "
            f"{free / 2**20:.0f} MiB are free. Free some, or name another folder with root"
        )
