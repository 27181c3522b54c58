"""Builds dataclasses from the plain fields of a config, by their type hints."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from diffdistill.fields import Fields, join
from diffdistill.fields.field_type import alternatives, check_type, converted
from diffdistill.fields.unknown_field import refuse_unknown
from diffdistill.ranges import brief, check_range

NOTHING: Fields = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
  """Builds an object from plain fields and a type hint.

  The type hint of a field decides what its value must be:

    a dataclass           a section with the fields of the dataclass
    a key of `kinds`      a section whose `kind` names a class of the table
    dict[str, Any]        a section that is kept unchanged and built later
    Mapping[str, section] sections by name
    anything else         a value of this type in the range of the field

  A missing section counts as empty, unless its field has a default.

  Args:
    kinds: for each base class or protocol, a table of its classes by `kind`.
  """

  kinds: Mapping[Any, Mapping[str, type]]

  def build(
    self, path: str, hint: Any, value: Any, given: Fields = NOTHING
  ) -> Any:
    """Builds an object of a hint's type from a plain value.

    Args:
      path: the path of the value, for messages; empty for the whole config.
      hint: the type hint of the object.
      value: the plain value, such as a dict of fields.
      given: objects by field name. They are the values of all fields with these
        names, here and in all sections below; no config may have these fields.

    Raises:
      ValueError: if a field is unknown or missing, or if a value has the wrong
        type or is out of range. The message is one line with the field's path.
    """
    section = self._section(hint)
    if section is None:
      check_type(path, value, hint)
      return converted(value, hint)
    if not isinstance(value, dict):
      raise ValueError(
        f"{path} is {brief(value)}; pass a section with fields of its own"
      )
    if section in self.kinds:
      return self.choose(path, self.kinds[section], value, given)
    if dataclasses.is_dataclass(section):
      return self.make(path, section, value, given)
    of = typing.get_args(section)[1]
    if of is Any:
      return dict(value)
    return {
      name: self.build(join(path, name), of, item, given)
      for name, item in value.items()
    }

  def choose(
    self,
    path: str,
    table: Mapping[str, type],
    fields: Fields,
    given: Fields = NOTHING,
  ) -> Any:
    """Builds an object of the class that fields["kind"] names; see `build`."""
    fields = dict(fields)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in table:
      raise ValueError(
        f"{join(path, 'kind')} is {brief(kind)}; pass one of {', '.join(table)}"
      )
    return self.make(path, table[kind], fields, given)

  def make(
    self, path: str, cls: Any, fields: Fields, given: Fields = NOTHING
  ) -> Any:
    """Builds an object of a dataclass from its fields; see `build`."""
    every = settable(cls)
    known = {name: f for name, f in every.items() if name not in given}
    refuse_unknown(path, fields, known)
    hints = typing.get_type_hints(cls)
    values = {name: given[name] for name in every if name in given}
    for name, field in known.items():
      where, hint = join(path, name), hints[name]
      if name in fields and self._section(hint) is None:
        check_type(where, fields[name], hint)
        check_range(where, cls, name, fields[name])
        values[name] = converted(fields[name], hint)
      elif name in fields:
        values[name] = self.build(where, hint, fields[name], given)
      elif field.default is field.default_factory is dataclasses.MISSING:
        if self._section(hint) is None:
          raise ValueError(f"{where} is missing; pass a value")
        values[name] = self.build(where, hint, {}, given)
    try:
      return cls(**values)
    except (ValueError, TypeError) as error:
      # The messages of some classes already begin with the path.
      message = str(error)
      where = "" if message.startswith(path) else f"{path}: "
      raise ValueError(f"{where}{message}") from error

  def _section(self, hint: Any) -> Any:
    """Removes None from the hint of a section; returns None for other hints."""
    options = [h for h in alternatives(hint) if h is not types.NoneType]
    if len(options) > 1:
      return None
    (hint,) = options
    if hint in self.kinds or dataclasses.is_dataclass(hint):
      return hint
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict or (origin is Mapping and self._section(of[1])):
      return hint
    return None


def settable(cls: Any) -> dict[str, dataclasses.Field[Any]]:
  """The fields that can be passed to a dataclass, by name.

  The fields `parent` and `name` of every Linen module are left out, because
  a config cannot set them.
  """
  fields = {
    field.name: field for field in dataclasses.fields(cls) if field.init
  }
  linen = ("parent", "name") if "parent" in fields else ()
  return {name: f for name, f in fields.items() if name not in linen}


def split(cls: Any, fields: Fields) -> tuple[Fields, Fields]:
  """Splits a section into the fields of a dataclass and all other fields."""
  own = settable(cls)
  return (
    {name: value for name, value in fields.items() if name in own},
    {name: value for name, value in fields.items() if name not in own},
  )
