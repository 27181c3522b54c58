"""Keeps each finished row of an evaluation in a file, so that it can resume.

The file of a row is `<folder>/<model>/<steps>_<hash of its settings>.npz`. A
row is used again only if its settings and its weights are the same. Rows with
other settings, such as another judge, lie side by side. A row with the same
settings but new weights replaces the old one. A damaged file is not used: its
row is made again, and a warning names the file. The file holds

  row        JSON: the columns, the settings, a name of the weights, the devices
  shown      the first images as bytes, for the sheet
  target     float32: the images of the teacher at its most steps, with which
             students are compared; empty for all other rows
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
from diffdistill.system.files import matching, write_atomically
from diffdistill.training.fingerprint import fingerprint

# The folder in a workdir that keeps the finished rows of evaluations.
FOLDER = "evaluated"
# The fields of a row that are written as JSON.
WORDS = ("made_with", "weights", "devices", "columns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedRow:
  """The measurements of one model at one number of steps.

  Args:
    made_with: the settings that the row depends on: name -> plain value.
    weights: a fingerprint of the model's weights.
    devices: the devices that the model was timed on.
    columns: the measured values, by column name.
    shown: the first images of the model.
    target: images in [-1, 1] with which students are compared; only the
      teacher's row at its most steps has them.
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
    folder: the folder of the rows; None to keep none.
    made_with: the settings that all rows share: images, seed, judge.
    devices: the devices of this process.
    fingerprint: computes the fingerprint of weights.
    say: receives one line for each damaged file.
  """

  folder: epath.Path | None = None
  made_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  devices: str = ""
  fingerprint: Callable[[Params], str] = lambda params: ""
  say: Callable[[str], None] = lambda line: None

  def take(
    self, made_with: Mapping[str, Any], weights: "Weights"
  ) -> JudgedRow | None:
    """The kept row if it is still valid and every process sees it, or None.

    Args:
      made_with: the settings of the row now, with its model and steps.
      weights: the weights of the model. If they were left behind, the row is
        taken without comparing them.
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
    """Writes a row in place of the old one, whole or not at all."""
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
  """The finished rows of a run.

  Args:
    run: the recipe.
    workdir: the folder where the run was trained.
    identity: the identity of the judge, see `identity_of`.
    say: receives one line for each damaged file.
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


def rename_models(workdir: epath.Path, names: Mapping[str, str]) -> None:
  """Gives the kept rows of some models the new names of these models.

  Args:
    workdir: the folder of the run.
    names: the new name of each model, by its old name.
  """
  for old, new in names.items():
    folder = workdir / FOLDER / old.replace(" ", ".")
    for path in matching(folder, "*.npz"):
      row = _read(path, lambda line: None)
      if row is not None and row.made_with["model"] == old:
        made_with = {**row.made_with, "model": new}
        row = dataclasses.replace(row, made_with=made_with)
        JudgedRows(folder=workdir / FOLDER).keep(row)
        path.unlink()


class Weights:
  """A model's weights, loaded when they are first used.

  Args:
    load: loads the weights; None if `diffdistill carry` left them behind.
    name: computes the fingerprint of the weights.
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
    assert self._load is not None  # the caller must check `here` first
    return self._load()

  @functools.cached_property
  def fingerprint(self) -> str:
    return self._name(self.params)


def path_of(folder: epath.Path, made_with: Mapping[str, Any]) -> epath.Path:
  """The file of a row; "halve/004 last" gets the folder "halve/004.last"."""
  text = json.dumps(made_with, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  name = f"{made_with['steps']}_{digest}.npz"
  return folder / made_with["model"].replace(" ", ".") / name


def _read(path: epath.Path, say: Callable[[str], None]) -> JudgedRow | None:
  """Reads a row from its file; None if the file is missing or damaged."""
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
