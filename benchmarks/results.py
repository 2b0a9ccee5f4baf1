"""What was measured, in plain values and on disk after each part, so that a run can go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.rates import Rates
from benchmarks.report import markdown
from dam_lightning.files import written_beside

__all__ = ["Results"]


class Results:
    """A document, and the two files that are made of it.

    Args:
        folder: of ``results.json``, the document, and ``results.md``, the same to be read; None: no
            files. What an earlier run with the same settings left there is kept.
        head: what there is before anything is measured; in it ``machine`` and ``settings``, which
            results that belong together have in common, and ``command``.

    Attributes:
        document: everything.

    Raises:
        OSError: if there can be no such files.
        ValueError: if the folder has results of another machine or with other settings.
    """

    def __init__(self, folder: Path | None, head: Mapping[str, Any]) -> None:
        self._folder = folder
        empty: dict[str, Any] = {"rates": None, "trainer": None, "tasks": {}, "scaling": []}
        self.document: dict[str, Any] = {**head, **empty}
        if folder is None:
            return
        path = folder / "results.json"
        if path.exists():
            found = json.loads(path.read_text())
            for part in ("machine", "settings"):
                names = {**found[part], **head[part]}
                other = [name for name in names if found[part].get(name) != head[part].get(name)]
                if other:
                    raise ValueError(
                        f"{path} has results with another {', '.join(other)}: name another folder"
                    )
            self.document = {**found, **head}
        # Before the work, so that a wrong path does not cost it.
        self.save()

    def put(self, part: str, value: Any) -> None:
        """Set a part of the document."""
        self.document[part] = value
        self.save()

    def put_task(self, case: str, task: str, found: Mapping[str, Any]) -> None:
        """Add what was found of a task, or why nothing was: ``error``."""
        self.document["tasks"][f"{case}: {task}"] = {"case": case, "task": task, **found}
        self.save()

    def has_task(self, case: str, task: str) -> bool:
        """Whether there is something of it that is no error."""
        return "error" not in self.document["tasks"].get(f"{case}: {task}", {"error": ""})

    def put_scaling(self, found: Mapping[str, Any]) -> None:
        """Add a variable of a method."""
        self.put("scaling", [*self.document["scaling"], dict(found)])

    def has_scaling(self, method: str, variable: str, compiled: bool) -> bool:
        """Whether there is one."""
        asked = (method, variable, compiled)
        found = self.document["scaling"]
        return any((each["method"], each["name"], each["compiled"]) == asked for each in found)

    def put_rates(self, rates: Rates) -> None:
        """Keep the best of these and the earlier ones."""
        earlier = self.document["rates"]
        best = rates if earlier is None else rates.best(Rates(**earlier))
        self.put("rates", best._asdict())

    def save(self) -> None:
        """Write both files."""
        if self._folder is None:
            return
        text = json.dumps(self.document, indent=1) + "\n"
        for name, content in (("results.json", text), ("results.md", markdown(self.document))):
            with written_beside(self._folder / name) as beside:
                beside.write_text(content)
