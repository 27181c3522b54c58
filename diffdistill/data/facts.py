"""Describes a data set by facts, with which a run can be opened without it."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffdistill.data.label_order import abbreviated
from diffdistill.data.sources import Source
from diffdistill.data.tfds import Tfds
from diffdistill.system import hosts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """Describes one split of a data set.

  Args:
    num_images: the number of images.
    image_shape: (h, w, c) of the images that are trained on.
    image_dtype: the name of the type of images, such as "uint8".
    num_classes: the number of classes.
    class_names: the name of each class; empty if classes have only numbers.
    label_counts: the number of images of each class; empty if not counted.
    digests: the digests of the data, by what they cover; see `Source.digests`.
    left_out: phrases that name the things beside the images that are not read.
    held_out: the facts of the held-out split; None if there is none.
  """

  num_images: int
  image_shape: tuple[int, int, int]
  image_dtype: str
  num_classes: int
  class_names: tuple[str, ...]
  label_counts: tuple[int, ...]
  digests: Mapping[str, str]
  left_out: tuple[str, ...]
  held_out: "Facts | None" = None

  @property
  def empty_classes(self) -> tuple[str, ...]:
    """The names, or numbers, of the classes without images."""
    counts = enumerate(self.label_counts)
    return tuple(self._name(label) for label, count in counts if not count)

  def summary(self, devices: str) -> str:
    """Describes the images, the classes and the things left out, in one line.

    Args:
      devices: a text that names the devices of the command.
    """
    height, width, channels = self.image_shape
    parts = [
      f"data on {devices}: {_counted(self.num_images, 'image')} of"
      f" {height}x{width}x{channels} in {self._classes()}"
    ]
    if self.empty_classes:
      parts.append(
        f"classes without images: {abbreviated(self.empty_classes)}; they are"
        " not learned and not drawn"
      )
    if self.held_out is not None:
      parts.append(self._held_out(self.held_out))
    parts.append(f"left out: {', '.join(self.left_out) or 'nothing'}")
    return "; ".join(parts)

  def _classes(self) -> str:
    classes = _counted(self.num_classes, "class", "es")
    if not self.label_counts:
      return f"{classes}, not counted"
    counts = [
      f"{self._name(label)}{'' if self.class_names else ':'} {count:,}"
      for label, count in enumerate(self.label_counts)
    ]
    return f"{classes} ({abbreviated(counts)})"

  def _held_out(self, split: "Facts") -> str:
    text = f"held out: {_counted(split.num_images, 'image')}"
    if self.label_counts and split.label_counts:
      # If classes have no names, either split may have more classes.
      counts = tuple(
        itertools.zip_longest(
          self.label_counts, split.label_counts, fillvalue=0
        )
      )
      lacking = [
        self._name(i)
        for i, (here, there) in enumerate(counts)
        if here > there == 0
      ]
      if lacking:
        text += f", none of {abbreviated(lacking)}"
      strange = [
        i for i, (here, there) in enumerate(counts) if there > here == 0
      ]
      if strange:
        number = sum(counts[i][1] for i in strange)
        names = abbreviated([split._name(i) for i in strange])
        text += (
          f", {number:,} of them of classes without training images ({names})"
        )
    if split.left_out:
      text += f" (left out there: {', '.join(split.left_out)})"
    return text

  def _name(self, label: int) -> str:
    if not self.class_names:
      return str(label)
    # A folder's name may hold a line break, so replace it.
    return "".join(
      c if c.isprintable() else repr(c)[1:-1] for c in self.class_names[label]
    )


def describe(
  source: Source, *, known: Facts | None = None, counted: bool = True
) -> Facts:
  """Checks a source, and describes it and its held-out split.

  Every process of the run must make this call.

  Args:
    source: the source of the training images.
    known: earlier facts of the same data. Their label counts are used again if
      the digests are equal.
    counted: whether to count labels if that reads every image.

  Raises:
    ValueError: see `Source.check`.
    FileNotFoundError: see `Source.check`.
  """
  source.check()
  facts = _described(source, known, counted)
  held_out = source.held_out()
  if held_out is None:
    return facts
  try:
    held_out.check()
  except FileNotFoundError as error:
    left_out = (*facts.left_out, f"a held-out split, for {error}")
    return dataclasses.replace(facts, left_out=left_out)
  # Do not count the labels of a held-out split, because they are not needed.
  there = _described(held_out, None, False)
  return dataclasses.replace(facts, held_out=there)


def _described(source: Source, known: Facts | None, counted: bool) -> Facts:
  # After `check`, every process sees the data as the first process sees it.
  digests = hosts.on_first(source.digests)
  counts: tuple[int, ...] = ()
  if known is not None and known.label_counts and known.digests == digests:
    counts = known.label_counts
  elif counted or not isinstance(source, Tfds):
    counts = source.label_counts
  return Facts(
    num_images=len(source),
    image_shape=source.image_shape,
    image_dtype=np.dtype(source.image_dtype).name,
    num_classes=source.num_classes,
    class_names=source.class_names,
    label_counts=counts,
    digests=digests,
    left_out=source.left_out,
  )


def difference(theirs: Facts, ours: Facts) -> str:
  """Names the first difference between two data sets; "" if they are the same.

  Args:
    theirs: the facts of the data that a run was made with.
    ours: the facts of the data on this machine.
  """
  names = [n for n in ours.class_names if n not in theirs.class_names]
  gone = [n for n in theirs.class_names if n not in ours.class_names]
  if names or gone:
    return (
      f"the classes {abbreviated(gone) or 'of before'} are"
      f" {abbreviated(names) or 'gone'} here"
    )
  for what, a, b in (
    ("the number of images", theirs.num_images, ours.num_images),
    ("the number of classes", theirs.num_classes, ours.num_classes),
    ("the shape of images", theirs.image_shape, ours.image_shape),
  ):
    if a != b:
      return f"{what} is {a} there and {b} here"
  for label, name in enumerate(theirs.class_names):
    if ours.class_names[label] != name:
      return f"class {label} is {name} there and {ours.class_names[label]} here"
  for label, (a, b) in enumerate(
    zip(theirs.label_counts, ours.label_counts, strict=False)
  ):
    if a != b:
      return f"class {ours._name(label)} has {a} images there and {b} here"
  for covered in theirs.digests.keys() & ours.digests.keys():
    if theirs.digests[covered] != ours.digests[covered]:
      return f"the {covered} differ"
  if (theirs.held_out is None) != (ours.held_out is None):
    there, here = ("none", "one") if ours.held_out else ("one", "none")
    return f"held-out splits: {there} there and {here} here"
  if theirs.held_out is not None and ours.held_out is not None:
    found = difference(theirs.held_out, ours.held_out)
    return found and f"of the held-out split, {found}"
  return ""


def as_json(facts: Facts) -> dict[str, Any]:
  """Returns the facts as plain values for JSON."""
  return dataclasses.asdict(facts)


def from_json(fields: Mapping[str, Any]) -> Facts:
  """Makes facts from the plain values of `as_json`.

  Raises:
    KeyError: if a field is missing.
    TypeError: if a value has another type.
    ValueError: if a value is not allowed.
  """
  held_out = fields["held_out"]
  height, width, channels = map(int, fields["image_shape"])
  return Facts(
    num_images=int(fields["num_images"]),
    image_shape=(height, width, channels),
    image_dtype=fields["image_dtype"],
    num_classes=int(fields["num_classes"]),
    class_names=tuple(fields["class_names"]),
    label_counts=tuple(fields["label_counts"]),
    digests=dict(fields["digests"]),
    left_out=tuple(fields["left_out"]),
    held_out=None if held_out is None else from_json(held_out),
  )


def _counted(count: int, what: str, ending: str = "s") -> str:
  return f"{count:,} {what}{'' if count == 1 else ending}"
