"""Rows of a comparison that are done, one file each, to go on from.

A row is taken again only where it was made alike, of the same weights: what it
was made with is in its file, `<folder>/<model>/<steps>_<hash of that>.npz`, so
rows that were made otherwise, by another judge say, lie side by side; one of
other weights, but made alike, replaces the one before. In a damaged file no
byte is believed: its row is made again, and the file is named. It holds

  row        JSON: the columns, what they were made with, on which devices
  shown      the first images as bytes, for the sheet
  target     float32, of the teacher at its most steps: the images that
             students are compared with; of other rows none
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from diffdistill.arrays import Params
from diffdistill.judging.sealed import seal, unseal
from diffdistill.run.experiment import Experiment
from diffdistill.system import hosts
from diffdistill.system.files import write_atomically
from diffdistill.training.fingerprint import fingerprint

# In a workdir.
FOLDER = "evaluated"
# What is JSON of a row.
WORDS = ("made_with", "weights", "devices", "columns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedRow:
  """What is known of a model at a number of steps.

  Args:
    made_with: all that it depends on but the weights: name -> plain value.
    weights: a fingerprint of them.
    devices: that it was timed on.
    columns: what was measured.
    shown: its first images.
    target: those that students are compared with, in [-1, 1]; of one row only.
  """

  made_with: Mapping[str, Any]
  weights: str
  devices: str
  columns: Mapping[str, Any]
  shown: UInt8[np.ndarray, "n h w c"]
  target: Float[np.ndarray, "m h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedRows:
  """The finished rows of a run.

  Args:
    folder: where they are; None keeps none.
    made_with: what all of them depend on: images, seed, judge.
    devices: that are here.
    fingerprint: of weights.
    say: told which files are damaged.
  """

  folder: epath.Path | None = None
  made_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  devices: str = ""
  fingerprint: Callable[[Params], str] = lambda params: ""
  say: Callable[[str], None] = lambda line: None

  def take(
    self, made_with: Mapping[str, Any], weights: "Weights"
  ) -> JudgedRow | None:
    """The row as it was, where it would be the same and every process sees it.

    Args:
      made_with: what it would be made with now; its model and steps too.
      weights: that it would be made of. Where they are not here any more, those
        that it was made of are taken on its word.
    """
    if self.folder is None:
      return None
    row = _read(path_of(self.folder, made_with), self.say)
    alike = row is not None and row.made_with == made_with
    if not hosts.everywhere(alike) or row is None:
      return None
    if weights.here and row.weights != weights.fingerprint:
      return None
    return row

  def keep(self, row: JudgedRow) -> None:
    """Writes a row, whole or not at all, in place of the one before."""
    if self.folder is None:
      return
    words = {name: getattr(row, name) for name in WORDS}
    data = seal(
      {
        "row": np.array(json.dumps(words)),
        "shown": row.shown,
        "target": row.target,
      }
    )
    path = path_of(self.folder, row.made_with)
    hosts.on_first(lambda: write_atomically(path, data))


NOTHING_KEPT = JudgedRows()


def judged_rows(
  run: Experiment,
  workdir: epath.Path,
  identity: str,
  say: Callable[[str], None] = lambda line: None,
) -> JudgedRows:
  """The rows of a run that are done.

  Args:
    run: the recipe.
    workdir: where the run was trained.
    identity: of the judge, see `identity_of`.
    say: told which files are damaged.
  """
  settings = run.evaluation
  return JudgedRows(
    folder=workdir / FOLDER,
    made_with={
      "num_images": settings.num_images,
      "seed": settings.seed,
      "gap_images": min(settings.gap_images, settings.num_images),
      "judge": identity,
      "labels": run.label_rule,
    },
    devices=run.devices,
    fingerprint=fingerprint,
    say=say,
  )


class Weights:
  """A model's weights, loaded when they are first looked at.

  Args:
    load: gives them; None where they are not here any more.
    name: gives their fingerprint.
  """

  def __init__(
    self, load: Callable[[], Params] | None, name: Callable[[Params], str]
  ):
    self._load = load
    self._name = name

  @property
  def here(self) -> bool:
    return self._load is not None

  @functools.cached_property
  def params(self) -> Params:
    assert self._load is not None  # asked for only where they are here
    return self._load()

  @functools.cached_property
  def fingerprint(self) -> str:
    return self._name(self.params)


def path_of(folder: epath.Path, made_with: Mapping[str, Any]) -> epath.Path:
  """The file of a row: "halve/004 last" has a folder that no round has."""
  text = json.dumps(made_with, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  name = f"{made_with['steps']}_{digest}.npz"
  return folder / made_with["model"].replace(" ", ".") / name


def _read(path: epath.Path, say: Callable[[str], None]) -> JudgedRow | None:
  """The row in a file; None where there is none, or none that can be read."""
  if not path.exists():
    return None
  try:
    arrays = unseal(path.read_bytes())
  except ValueError as error:
    say(f"warning: {path} is not used, and its row is made again: {error}")
    return None
  return JudgedRow(
    **json.loads(str(arrays["row"])),
    shown=arrays["shown"],
    target=arrays["target"],
  )
