"""HTML that is well formed and escaped by how it is made."""

import html
import re
from collections.abc import Sequence


class Html(str):
  """Markup that is escaped already."""

  __slots__ = ()


def element(
  name: str, /, *children: str, **attributes: str | int | float | None
) -> Html:
  """One element; children that are plain text are escaped.

  Args:
    name: "p", "svg", ...; `img` and the like have no children.
    children: Html, taken as it is, or text.
    attributes: a trailing underscore is dropped and others are hyphens, so
      class_ is class and stroke_width stroke-width; None leaves one out.
  """
  written = "".join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  if not children:
    # HTML takes <div/> for an open <div>.
    end = " />" if name in _ALONE else f"></{name}>"
    return Html(f"<{name}{written}{end}")
  return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Sequence[str]) -> Html:
  """Parts one after the other; plain text is escaped."""
  return Html(
    "".join(
      part if isinstance(part, Html) else html.escape(part) for part in parts
    )
  )


def broken(name: str) -> Html:
  """A name that may break after its slashes, dots and underscores."""
  parts = re.split(r"(?<=[/._])(?!$)", name)
  return Html("<wbr />".join(html.escape(part) for part in parts))


def table(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  caption: str,
  words: int = 1,
) -> Html:
  """A table in a box of its own, which scrolls where it is too wide.

  Args:
    header: of the columns.
    rows: cells, plain or Html; the first of a row names it.
    caption: what it shows, for who does not see it.
    words: columns, from the first, that hold words and lie to the left.
  """

  def line(cells: Sequence[str]) -> Html:
    made = [element("th", cells[0], scope="row")]
    for i, cell in enumerate(cells[1:], start=1):
      made.append(element("td", cell, class_="word" if i < words else None))
    return element("tr", *made)

  head = [
    element("th", text, scope="col", class_="word" if i < words else None)
    for i, text in enumerate(header)
  ]
  parts = [
    element("caption", caption),
    element("thead", element("tr", *head)),
    element("tbody", *(line(row) for row in rows)),
  ]
  return element(
    "div",
    element("table", *parts),
    class_="scroll",
    tabindex=0,
    role="region",
    aria_label=caption,
  )


def definitions(pairs: Sequence[tuple[str, str]], class_: str) -> Html:
  """Names and their values."""
  return element(
    "dl",
    *(
      element("div", element("dt", name), element("dd", value))
      for name, value in pairs
    ),
    class_=class_,
  )


_ALONE = (
  "br",
  "circle",
  "img",
  "line",
  "link",
  "meta",
  "path",
  "polyline",
  "rect",
)
