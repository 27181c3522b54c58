"""Records the facts of a run's data in the file data.json of its workdir.

The record is written when a run claims its workdir. Then the run continues only
with the same data, and the workdir can be opened on a machine without the data.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from etils import epath

from diffdistill.data.facts import (
  Facts,
  as_json,
  describe,
  difference,
  from_json,
)
from diffdistill.data.sources import Examples, Indices, Labels, Source
from diffdistill.system import hosts
from diffdistill.system.files import digest_of, read_json, write_json

FILE = "data.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
  """Describes a source by recorded facts, and reads its data only when needed.

  Args:
    facts: the facts of the data.
    source: the source of the images. Only `check`, `take`, `labels` and
      `held_out` read it; the first call of any of these compares it with the
      facts.
    compared: whether the source was already compared with the facts.
  """

  facts: Facts
  source: Source
  compared: bool = False

  def check(self) -> None:
    """Refuses data that differs from the facts.

    Raises:
      ValueError: if the data differs; the message names the difference.
    """
    _ = self._opened

  def __len__(self) -> int:
    return self.facts.num_images

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.facts.image_shape

  @property
  def image_dtype(self) -> np.dtype:
    return np.dtype(self.facts.image_dtype)

  @property
  def num_classes(self) -> int:
    return self.facts.num_classes

  @property
  def label_counts(self) -> tuple[int, ...]:
    """The recorded counts, or the counts of the data if none are recorded."""
    return self.facts.label_counts or self._opened.label_counts

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.facts.class_names

  @property
  def left_out(self) -> tuple[str, ...]:
    return self.facts.left_out

  def digests(self) -> dict[str, str]:
    """Returns the recorded digests, because the data may have moved since."""
    return dict(self.facts.digests)

  def labels(self) -> Labels:
    """Returns the label of every image, in order."""
    return self._opened.labels()

  def take(self, indices: Indices) -> Examples:
    """Returns the images and labels at `indices`, in that order."""
    return self._opened.take(indices)

  def held_out(self) -> Source | None:
    """Returns the held-out split of the data."""
    return None if self.facts.held_out is None else self._opened.held_out()

  @functools.cached_property
  def _opened(self) -> Source:
    """The checked source. All processes must ask for it together."""
    self.source.check()
    if not self.compared:
      here = describe(self.source, known=self.facts, counted=False)
      found = difference(self.facts, here)
      if found:
        raise ValueError(
          f"the data has changed since the run was made: {found}; pass the data"
          " that it was made with"
        )
    return self.source


def admit(
  source: Source, workdir: epath.Path, *, begun: bool, counted: bool
) -> Recorded:
  """Checks and describes the data of a run that begins or continues.

  Every process of the run must make this call.

  Args:
    source: the source of the images.
    workdir: the workdir of the run; it need not exist.
    begun: whether a stage of the run has begun; then the data must be the same.
    counted: whether to count labels if that reads every image.

  Raises:
    ValueError: if the run began with other data (the message names the
      difference), or if the hosts have different data.
  """
  stored = read(workdir)
  facts = describe(source, known=stored, counted=counted)
  mine = digest_of(as_json(facts))
  if not hosts.everywhere(mine == hosts.on_first(lambda: mine)):
    raise ValueError(
      "images and classes are not the same on every host; copy the data of the"
      " first host to all, or pass a folder that all of them share"
    )
  if stored is not None and begun:
    found = difference(stored, facts)
    if found:
      raise ValueError(
        f"{workdir} was made with other data: {found}; pass the data it was"
        " made with, or a new --workdir"
      )
    # Keep the recorded digests too, because data in a bucket has fewer digests
    # than the same data on a disk.
    facts = dataclasses.replace(
      facts, digests={**facts.digests, **stored.digests}
    )
  return Recorded(facts=facts, source=source, compared=True)


def keep(workdir: epath.Path, facts: Facts) -> None:
  """Writes the record if it is new or changed, on the first process."""
  if read(workdir) != facts:
    hosts.on_first(lambda: write_json(workdir / FILE, as_json(facts)))


def read(workdir: epath.Path) -> Facts | None:
  """Reads the record of a workdir; None if there is none.

  Raises:
    ValueError: if the record is damaged.
  """
  path = workdir / FILE
  remedy = "restore it; or remove it, and train writes it again"

  def stored() -> dict[str, Any] | None:
    try:
      return read_json(path) if path.exists() else None
    except ValueError as error:
      raise ValueError(f"{error}; {remedy}") from error

  fields = hosts.on_first(stored)
  if fields is None:
    return None
  try:
    return from_json(fields)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is of another version; {remedy}") from error
