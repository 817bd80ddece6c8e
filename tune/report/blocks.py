"""What a page is made of: figures, tables, paragraphs, and parts that are missing for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Text in rows and columns."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    numeric: Sequence[bool] = ()
    """Which columns are numbers; none given: all but the first."""
    folded: bool = False
    """Whether it is shown only where it is asked for."""

    def right(self, column: int) -> bool:
        """Whether a column is set to the right."""
        return self.numeric[column] if self.numeric else column > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A picture with what it shows in words, and as numbers."""

    key: str
    """Also the prefix of all ids within."""
    title: str
    svg: Markup
    alt: str
    """What is seen, with the key numbers."""
    caption: str
    data: Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image made elsewhere, embedded as it is."""

    title: str
    uri: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A part that this study has not, and why."""

    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Paragraphs."""

    lines: Sequence[str]


Block = Figure | Table | Absent | Picture | Lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page with a heading of its own."""

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


def kind(block: Block) -> str:
    """Return the name of the block's class, by which the template draws it."""
    return type(block).__name__


def of_rich(table: RichTable, *, title: str = "", folded: bool = False) -> Table:
    """Return a table of the terminal as one of the page."""
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return Table(
        headers=[_plain(column.header) for column in table.columns],
        rows=[list(row) for row in zip(*columns, strict=True)],
        title=title or _plain(table.title or ""),
        note=_plain(table.caption or ""),
        numeric=[column.justify == "right" for column in table.columns],
        folded=folded,
    )


def _plain(value: object) -> str:
    return value.plain if isinstance(value, Text) else str(value)
