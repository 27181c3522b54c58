"""Tables that give the class for each `kind` of a config section."""

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Kinds(Mapping[str, Any]):
  """The classes of one package by name; a class is imported when it is used.

  Args:
    room: the name of the package, such as diffdistill.networks.
    places: the file and the class for each name, such as "mlp:MLP".
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
    """The first line of a class's docstring, read without an import."""
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
