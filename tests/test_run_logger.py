"""Runs that start together have folders of their own."""

from pathlib import Path

from dam_lightning.run_logger import RunLogger
from tests.runs import in_a_process


def note_version(folder: Path, number: int) -> None:
    logger = RunLogger(folder)
    (folder / f"{number}.txt").write_text(f"{logger.version} {logger.log_dir}")


def test_a_folder_is_taken_at_once(tmp_path: Path) -> None:
    """By a logger that has written nothing yet; numbers go on from those that are there."""
    (tmp_path / "lightning_logs" / "version_6").mkdir(parents=True)
    loggers = [RunLogger(tmp_path) for _ in range(3)]
    assert [logger.version for logger in loggers] == [7, 8, 9]
    assert [logger.version for logger in loggers] == [7, 8, 9]
    assert Path(loggers[0].log_dir) == tmp_path / "lightning_logs" / "version_7"


def test_another_process_takes_another(tmp_path: Path) -> None:
    for number in range(2):
        assert in_a_process(note_version, tmp_path, number) == 0
    texts = [(tmp_path / f"{number}.txt").read_text() for number in range(2)]
    assert [text.split()[0] for text in texts] == ["0", "1"]
    assert texts[1].endswith("version_1")
