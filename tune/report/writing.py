"""``report.html`` and ``study.parquet``: where they are written."""

from __future__ import annotations

from pathlib import Path

from tune.report import columns, page
from tune.report.facts import Facts

PAGE, ROWS = "report.html", "study.parquet"
PICTURES = "pictures"
"""Artifact of the study's run: its pictures of the method."""


def pictures_of(out: Path, study_id: str) -> Path:
    """Return the folder in which a study's pictures of the method lie, where there are any."""
    return out / f"{study_id}.pictures"


def write(facts: Facts, out: Path, *, pictures: Path | None = None) -> tuple[Path, Path]:
    """Write the page and the rows of a study, under its name and as those of the last study; return the latter.

    Args:
        facts: What there is to tell.
        out: Folder, which is made where it is not there.
        pictures: Folder of pictures to embed; by default the study's own in ``out``, unless the facts say that it has
            none: what lies there then is of an earlier state of the study.

    Raises:
        DataError: pictures that cannot be embedded.
    """
    own = None if facts.no_pictures else pictures_of(out, facts.study_id)
    html = page.render(facts, pictures=pictures or own)
    out.mkdir(parents=True, exist_ok=True)
    for name in (f"{facts.study_id}.{PAGE}", PAGE):
        temporary = out / f"{name}.tmp"
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(out / name)
    for name in (f"{facts.study_id}.parquet", ROWS):
        temporary = out / f"{name}.tmp"
        columns.write(facts, temporary)
        temporary.replace(out / name)
    return out / PAGE, out / ROWS
