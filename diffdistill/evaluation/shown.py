"""Tables and pictures that display in a terminal and in a notebook."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import TypeVar

from etils import epath

from diffdistill.evaluation.speeds import readable
from diffdistill.system.files import write_atomically

Row = TypeVar("Row")


class Table(tuple[Row, ...]):
  """Rows that print or display as a table, with numbers aligned to the right.

  A row maps the names of columns to values, or is a dataclass whose fields are
  the columns. Floats are shown with 4 digits, None and missing values as "-",
  and a value with a spread as value (least to most).
  """

  __slots__ = ()

  def __repr__(self) -> str:
    cells, right = self._cells()
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
      padded = [
        cell.rjust(width) if numeric else cell.ljust(width)
        for cell, width, numeric in zip(line, widths, right, strict=True)
      ]
      lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) if self else "(no rows)"

  def _repr_html_(self) -> str:
    (header, *rows), right = self._cells()
    lines = [_html_row("th", header, right)]
    lines += [_html_row("td", row, right) for row in rows]
    return f"<table>\n{''.join(lines)}</table>\n"

  def _cells(self) -> tuple[list[list[str]], list[bool]]:
    """The texts of the header and the rows; whether each column has numbers."""
    rows = [
      row if isinstance(row, Mapping) else dataclasses.asdict(row)  # pyrefly: ignore
      for row in self
    ]
    texts = [readable(row) for row in rows]
    columns = list(dict.fromkeys(name for row in texts for name in row))
    right = [
      all(isinstance(row.get(name), int | float | None) for row in rows)
      for name in columns
    ]
    cells = [[_cell(row.get(name)) for name in columns] for row in texts]
    return [columns, *cells], right


@dataclasses.dataclass(frozen=True, repr=False)
class Picture:
  """A PNG file that a notebook shows.

  Args:
    png: the bytes of the file.
    width: the width in a notebook, in pixels; None for the width of the file.
  """

  png: bytes
  width: int | None = None

  def save(self, path: epath.PathLike) -> None:
    """Writes the PNG file, whole or not at all; `path` may be in a bucket."""
    write_atomically(path, self.png)

  def __repr__(self) -> str:
    return f"Picture({len(self.png):,} bytes)"

  def _repr_png_(self) -> bytes | tuple[bytes, dict[str, int]]:
    if self.width is None:
      return self.png
    return self.png, {"width": self.width}


def _cell(value: object) -> str:
  if value is None:
    return "-"
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _html_row(kind: str, cells: Sequence[str], right: Sequence[bool]) -> str:
  """A row of an HTML table, with some of the cells aligned to the right."""
  whole = (
    f'<{kind} style="text-align: {"right" if end else "left"}">'
    f"{html.escape(cell)}</{kind}>"
    for cell, end in zip(cells, right, strict=True)
  )
  return f"<tr>{''.join(whole)}</tr>\n"
