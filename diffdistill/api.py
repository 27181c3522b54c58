"""The public API: `diffdistill.open`, `train` and `recipe`, and a `Run`.

Errors that a person can mend are a ValueError in one line: what is wrong, the
value, the remedy. What takes a while says so on the standard error, as the
commands do.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from diffdistill.evaluation.shown import Picture, Table
from diffdistill.judging.evaluate import Evaluation
from diffdistill.judging.exported import is_exported
from diffdistill.reporting import charts, costs
from diffdistill.reporting.gather import gather
from diffdistill.run import recipes
from diffdistill.run.workdir import stored_config
from diffdistill.system.places import place
from diffdistill.tools import evaluate, export
from diffdistill.tools import train as training
from diffdistill.tools.drawing import (
  ExportArtist,
  RunArtist,
  Wish,
  labelled_sheet,
)
from diffdistill.tools.finished import CLASSIFIER, Model

Path = str | os.PathLike[str]


def open(path: Path) -> "Run":
  """Opens a run, or a model that was exported.

  Args:
    path: the workdir of a run, or a folder of `diffdistill export` that holds
      safetensors or StableHLO; on a disk, or in a bucket (gs://...).

  Raises:
    ValueError: where the folder holds neither, or a damaged run.
  """
  folder = _place("path", path)
  if is_exported(folder):
    return Run(folder=folder, exported=True)
  if not (folder / "config.json").exists():
    raise ValueError(
      f"{folder} holds neither a run nor an exported model (safetensors or"
      " stablehlo); pass the workdir of a training, or the folder of an export"
    )
  stored_config(folder)
  return Run(folder=folder)


def recipe(name: str) -> Any:
  """The config of a recipe, in which every field can be changed.

  Args:
    name: such as "digits:progressive", one of those that `diffdistill list`
      prints; or FILE.py:RECIPE.

  Returns:
    A ConfigDict: `config.stages.halve.num_updates = 200`.

  Raises:
    ValueError: for a name that is neither.
  """
  return recipes.load(name)


def train(config: Any, workdir: Path) -> "Run":
  """Trains every round of a recipe that is not finished yet.

  The same call goes on with a training that was ended, from its newest
  checkpoint.

  Args:
    config: a ConfigDict, as `recipe` returns it, or the same fields as nested
      mappings; or a recipe's name.
    workdir: the folder of the run, on a disk or in a bucket.

  Returns:
    The run, open.

  Raises:
    ValueError: for a field out of its range, and for a workdir of another
      config or one in which another training is at work.
  """
  folder = _place("workdir", workdir)
  training.train(recipe(config) if isinstance(config, str) else config, folder)
  return Run(folder=folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run, or an exported model, that `diffdistill.open` has opened.

  Each sampler is compiled once for a number of images. Open the folder again
  after it was trained with another recipe.

  Args:
    folder: the workdir, or the folder of the exported model.
    exported: whether it is an exported model, which draws images and has
      neither data nor records.
  """

  folder: epath.Path
  exported: bool = False

  @property
  def models(self) -> Table[Model]:
    """The finished models, in the order of the recipe."""
    return self._artist.models()

  def sample(
    self,
    model: str | None = None,
    *,
    num_images: int = 64,
    num_steps: int | None = None,
    seed: int = 0,
    label: int | None = None,
    guidance: float | None = None,
    interpolate: int | None = None,
  ) -> UInt8[np.ndarray, "n h w c"]:
    """Images of a model: those of `diffdistill sample`, to the bit.

    Args:
      model: its name, such as "halve/004"; the last one that draws by default.
      num_images: how many; how many rows with `interpolate`.
      num_steps: of the sampler; by default those that a student was made for,
        and the most that a teacher is judged at.
      seed: of the noise, in [0, 2^32). Image i of each model has one noise.
      label: the class of all images; by default classes are as frequent as in
        the data.
      guidance: the weight, 0 or more; by default the config's for a teacher,
        and 0 for others.
      interpolate: images a row, 2 or more, from one noise to another; by
        default every image has a noise of its own.

    Returns:
      Bytes of shape (n, h, w, c); n is num_images * (interpolate or 1).

    Raises:
      ValueError: for a model that is not finished, and for a value that the
        model cannot be drawn with.
    """
    wish = Wish(
      num_images=num_images,
      num_steps=num_steps,
      seed=seed,
      label=label,
      guidance=guidance,
      interpolate=interpolate,
    )
    return self._artist.draw(model, wish).images

  def sheet(
    self,
    model: str | None = None,
    *,
    num_images: int = 12,
    num_steps: int | None = None,
    seed: int = 0,
    label: int | None = None,
    guidance: float | None = None,
    interpolate: int | None = None,
  ) -> Picture:
    """Images side by side: of one model, or a row of each model.

    Args:
      model: its name. By default there is a labelled row of each model, and the
        images of a column begin with the same noise.
      num_images: of the model, or in each row.
      num_steps, seed, label, guidance, interpolate: see `sample`.

    Raises:
      ValueError: as of `sample`; where no model is finished.
    """
    wish = Wish(
      num_images=num_images,
      num_steps=num_steps,
      seed=seed,
      label=label,
      guidance=guidance,
      interpolate=interpolate,
    )
    if model is not None:
      return self._artist.draw(model, wish).sheet()
    drawing = [m.name for m in self.models if m.kind != CLASSIFIER]
    # Where no model is finished, the last one is refused.
    names = drawing or [None]
    return labelled_sheet([self._artist.draw(name, wish) for name in names])

  def evaluate(
    self,
    num_steps: Sequence[int] | None = None,
    num_images: int | None = None,
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    inception: Path | None = None,
    reference: Path | None = None,
    exported: Sequence[Path] = (),
  ) -> Evaluation:
    """Judges the models by their distance from the data, as the command does.

    Each row is kept in the workdir as it is done: a second call goes on with
    the first row that is missing.

    Args:
      num_steps: of the teacher's sampler, one row each; a student is judged if
        the steps that it was made for are among these.
      num_images: judged a row; 20 or more.
      seed: of the noise.
      batch_size: images made at a time; less where memory is short.
      inception: the file of the FID network's weights; by default that of
        DIFFDISTILL_INCEPTION, and without either the run's own classifier
        judges.
      reference: an .npz of the FID network's statistics of the data.
      exported: folders of exported models of the same shape, judged too.

    Every value that is left out is the config's.

    Raises:
      ValueError: where the run has no teacher or no classifier to judge by, or
        a value is not one that a distance can be measured with.
    """
    self._check_is_run("judged")
    return evaluate.judge(
      self.folder,
      num_images=num_images,
      num_steps=None if num_steps is None else tuple(num_steps),
      seed=seed,
      batch_size=batch_size,
      inception=_text("inception", inception),
      reference=_text("reference", reference),
      exported=[_place("exported", path) for path in exported],
    )

  def curve(self) -> Picture:
    """The distances of the largest evaluation against sampler steps.

    Raises:
      ValueError: where there is no evaluation yet, or a damaged one.
      ImportError: without matplotlib.
    """
    self._check_is_run("drawn as a curve")
    return charts.distance_curve(self.folder)

  def losses(self, stage: str) -> Picture:
    """What a stage recorded while it was trained, against updates.

    Args:
      stage: its name, such as "halve"; its rounds follow one another.

    Raises:
      ValueError: for a stage without records of updates.
      ImportError: without matplotlib.
    """
    self._check_is_run("drawn as losses")
    return charts.stage_curves(self.folder, stage)

  def cost(self) -> Table[Mapping[str, Any]]:
    """What each round took, and all of them.

    Passes are images forward through the denoiser; a gradient counts as three.
    Seconds are by the clock, with compiling and saving. Peak memory is the most
    that the process, or a device that says so, had held until then.
    """
    self._check_is_run("asked for its cost")
    return Table(costs.rows(gather(self.folder, self.folder.name)))

  def export(
    self,
    model: str | None,
    out: Path,
    *,
    kind: str = "safetensors",
    num_steps: int | None = None,
  ) -> None:
    """Writes a model in another format, with its card, as the command does.

    Args:
      model: its name; the last one by default.
      out: a new or empty folder.
      kind: "safetensors", "stablehlo" or "diffusers".
      num_steps: of its sampler; by default those that a student was made for.

    Raises:
      ValueError: for a model that the format cannot represent.
    """
    self._check_is_run("exported")
    export.export(self.folder, model, num_steps, kind, _place("out", out))

  def _check_is_run(self, what: str) -> None:
    if self.exported:
      raise ValueError(
        f"{self.folder} holds an exported model without its run, so it cannot"
        f" be {what}; open the workdir of the run"
      )

  @functools.cached_property
  def _artist(self) -> RunArtist | ExportArtist:
    return (ExportArtist if self.exported else RunArtist)(self.folder)


def _place(name: str, path: Path) -> epath.Path:
  return place(name, os.fspath(path))


def _text(name: str, path: Path | None) -> str | None:
  return None if path is None else str(_place(name, path))
