"""Tables of classes, by the name that a config gives as `kind`."""

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Kinds(Mapping[str, Any]):
  """The classes of one room by name; the file of each is imported when asked.

  Args:
    room: the package that has the files, such as diffdistill.networks.
    places: the file and the class of each name, such as "mlp:MLP".
  """

  def __init__(self, room: str, places: dict[str, str]):
    self.room = room
    self.places = places

  def __getitem__(self, name: str) -> Any:
    return pkgutil.resolve_name(f"{self.room}.{self.places[name]}")

  def __iter__(self) -> Iterator[str]:
    return iter(self.places)

  def __len__(self) -> int:
    return len(self.places)

  def summary(self, name: str) -> str:
    """The first line about a class, read from its file without an import."""
    file, _, cls = self.places[name].partition(":")
    spec = importlib.util.find_spec(f"{self.room}.{file}")
    assert spec is not None
    assert spec.origin is not None
    (node,) = (
      node
      for node in ast.parse(Path(spec.origin).read_text("utf-8")).body
      if isinstance(node, ast.ClassDef) and node.name == cls
    )
    return (ast.get_docstring(node) or "").partition("\n")[0]
