"""Tests that the builder follows type hints and that errors name a remedy."""

import abc
import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pytest

from diffdistill.fields.builder import Builder, split
from diffdistill.ranges import Range


class Shape(abc.ABC):
  """A base class whose subclass a config selects by `kind`."""

  @abc.abstractmethod
  def area(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle(Shape):
  radius: Annotated[float, Range(0, 10, "least")]
  colour: str = "red"

  def area(self):
    return 3 * self.radius**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(Shape):
  side: int
  unit: str

  def area(self):
    return self.side**2

  def __post_init__(self):
    if self.side == 13:
      raise ValueError("side is 13; pass another number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  width: Annotated[int, Range(1, 8)] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  shape: Shape
  layer: Layer
  more: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
  extra: Layer | None = None
  later: dict[str, Any] | None = None
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  corner: tuple[int, float] = (0, 0.0)
  scale: float | None = None


@pytest.fixture(scope="module")
def build():
  builder = Builder(kinds={Shape: {"circle": Circle, "square": Square}})

  def make(fields, **given):
    return builder.build("drawing", Drawing, fields, given)

  return make


CIRCLE: Mapping[str, Any] = {"kind": "circle", "radius": 2}


def test_nested_sections_are_built_by_their_type_hints(build):
  made = build(
    {
      "shape": {**CIRCLE},
      "more": {"one": {"kind": "square", "side": 3}},
      "extra": {"width": 4},
      "later": {"any": {"thing": 1}},
      "names": {"a": "b"},
      "corner": (1, 2),
      "scale": 3,
    },
    unit="m",
  )
  assert made == Drawing(
    shape=Circle(radius=2.0),
    layer=Layer(),
    more={"one": Square(side=3, unit="m")},
    extra=Layer(width=4),
    later={"any": {"thing": 1}},
    names={"a": "b"},
    corner=(1, 2.0),
    scale=3.0,
  )
  floats = (typing.cast(Circle, made.shape).radius, made.corner[1], made.scale)
  assert all(isinstance(number, float) for number in floats)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, "drawing.shape.kind is None; pass one of circle, square"),
    ({"shape": {"kind": "circle"}}, "drawing.shape.radius is missing; pass a"),
    ({"shape": {**CIRCLE, "radius": 0}}, "shape.radius is 0; pass more than 0"),
    ({"shape": 3}, "drawing.shape is 3; pass a section with fields of its own"),
    ({"shpe": {}}, "drawing.shpe is no field; did you mean shape?"),
    ({"layer": {"width": 9}}, "drawing.layer.width is 9; pass 1 or more, at m"),
    (
      {"more": {"one": {"kind": "dot"}}},
      "drawing.more.one.kind is 'dot'; pass",
    ),
    ({"more": {"one": 2}}, "drawing.more.one is 2; pass a section with fields"),
    ({"extra": None}, "drawing.extra is None; pass a section with fields of"),
    ({"later": 1}, "drawing.later is 1; pass a section with fields of its own"),
    ({"names": {"a": 1}}, "drawing.names is {'a': 1} of type dict; pass coll"),
    ({"corner": (1,)}, "drawing.corner is (1,) of type tuple; pass tuple[int,"),
    ({"corner": (1, "a")}, "drawing.corner is (1, 'a') of type tuple; pass tu"),
    (
      {"scale": "1"},
      "drawing.scale is '1' of type str; pass float or NoneType",
    ),
    # The caller of `build` gives `unit`, so a config may not set it.
    (
      {"shape": {"kind": "square", "side": 1, "unit": "m"}},
      "drawing.shape.unit is no field; remove it, or pass one of side",
    ),
    (
      {"shape": {"kind": "square", "side": 13}},
      "drawing.shape: side is 13; pass another number",
    ),
  ],
)
def test_an_invalid_field_is_refused_in_one_line(build, fields, message):
  if fields and "shape" not in fields:
    fields = {"shape": CIRCLE, **fields}
  with pytest.raises(ValueError, match=r"^drawing\.") as error:
    build(fields, unit="m")
  assert str(error.value).startswith(message) or message in str(error.value)
  assert "\n" not in str(error.value)


def test_split_separates_the_fields_of_a_class_from_others():
  own, others = split(Layer, {"width": 2, "radius": 1.0})
  assert (own, others) == ({"width": 2}, {"radius": 1.0})
