"""Text files that say which images belong to a split."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_lists", "read_paths"]


def find_lists(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The folder that has lists of these names, or None where there is not one of them.

    Args:
        places: folders to look in, the first that has all of them counts.
        names: of the lists.

    Raises:
        FileNotFoundError: there are some of them, but in no folder all.
    """
    missing = {place: [name for name in names if not (place / name).is_file()] for place in places}
    for place, absent in missing.items():
        if not absent:
            return place
    for place, absent in missing.items():
        if len(absent) < len(names):
            raise FileNotFoundError(
                f"{place} has some of the lists of the splits, but not {', '.join(absent)}. "
                "Add these, or remove the others to have a split drawn."
            )
    return None


def read_paths(source: Path) -> list[str]:
    """Paths in a list, one in a line, perhaps followed by a space and a label.

    Returns:
        The paths in order, with forward slashes; repeated lines are repeated.

    Raises:
        ValueError: the file is no text.
    """
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no text in UTF-8 ({error}): download it anew") from error
    paths = []
    for line in map(str.strip, text.replace("\\", "/").splitlines()):
        path, _, label = line.rpartition(" ")
        if label.isdecimal():
            paths.append(path.rstrip())
        elif line:
            paths.append(line)
    return paths
