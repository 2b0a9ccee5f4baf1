"""The pages in results/ are those of the ledger there."""

from pathlib import Path

import pytest

from dam_lightning.report.__main__ import main
from dam_lightning.report.rows import read_ledger

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize(
    ("page", "options"), [("README.md", []), ("queue.md", ["--queue"])], ids=["report", "queue"]
)
def test_pages_are_up_to_date(
    page: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = str(RESULTS / "ledger.csv")
    main([ledger, *options])
    printed = capsys.readouterr().out
    assert (RESULTS / page).read_text(encoding="utf-8") == printed, (
        f"make it again: python -m dam_lightning.report results/ledger.csv {' '.join(options)} "
        f"--output results/{page}"
    )
    main([ledger, *options, "--output", str(tmp_path / "new" / page)])
    assert (tmp_path / "new" / page).read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == ""


def test_rows_are_of_commands_that_name_no_machine() -> None:
    for row in read_ledger(RESULTS / "ledger.csv"):
        program, _, _ = row.columns["command"].partition(" test ")
        assert program in ("dam-lightning", "python cli.py"), row.line
