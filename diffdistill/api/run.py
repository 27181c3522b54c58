"""A run or an exported model, as a program or a notebook uses it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from diffdistill.api.paths import Path, place_of, several
from diffdistill.evaluation.shown import Picture, Table
from diffdistill.judging.evaluate import Evaluation
from diffdistill.ranges import (
  BATCH_SIZE,
  SAMPLES,
  SEED,
  STEPS,
  Range,
  whole_number,
)
from diffdistill.reporting import charts, costs
from diffdistill.reporting.gather import gather
from diffdistill.tools import evaluate, export
from diffdistill.tools.drawing import ExportArtist, RunArtist
from diffdistill.tools.drawn import Wish, compared_sheet
from diffdistill.tools.finished import CLASSIFIER, Model
from diffdistill.tools.step_by_step import step_by_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run or an exported model, as `diffdistill.open` returns it.

  Each sampler is compiled once for each number of images. If the folder was
  trained again with another recipe, open it again.

  Args:
    folder: the workdir of the run, or the folder of the exported model.
    exported: whether it is an exported model, which has no data or records.
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
    """Draws images of a model: the same bytes as `diffdistill sample`.

    Args:
      model: such as "halve/004"; by default the last model that makes images.
      num_images: the number of images, or of rows if `interpolate` is set.
      num_steps: the number of sampler steps; by default the number that a
        student was made for, or the largest at which a teacher is judged.
      seed: the seed of the noise, in [0, 2^32). With the same seed, image i of
        all models begins with the same noise.
      label: the class of all images; by default classes are as frequent as in
        the data.
      guidance: the weight of the guidance, 0 or more; by default the config's
        weight for a teacher and for a student that is told one, and 0 for other
        models.
      interpolate: the number of images in a row, 2 or more, from one noise to
        another; by default the noises of all images are independent.

    Returns:
      Bytes of shape (n, h, w, c), where n is num_images * (interpolate or 1).

    Raises:
      ValueError: if the model is not finished, or a value does not suit it.
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
    plain: bool = False,
  ) -> Picture:
    """Draws a picture of one model's images, or with a row for each model.

    Args:
      model: the name of one model. By default the picture has a labelled row
        for each model, and the images of a column begin with the same noise.
      num_images: the number of images of the model, or in each row.
      plain: whether to draw the images alone, without titles and classes.
      num_steps, seed, label, guidance, interpolate: see `sample`.

    Raises:
      ValueError: if no model is finished, or for the reasons of `sample`.
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
      return self._artist.draw(model, wish).sheet(plain=plain)
    drawing = [m.name for m in self.models if m.kind != CLASSIFIER]
    # If no model is finished, drawing a model None raises the right error.
    names = drawing or [None]
    drawn = [self._artist.draw(name, wish) for name in names]
    return compared_sheet(drawn, plain=plain)

  def steps(
    self,
    model: str | None = None,
    *,
    num_images: int = 4,
    num_steps: int | None = None,
    seed: int = 0,
    label: int | None = None,
    plain: bool = False,
  ) -> Picture:
    """Draws each step of a student beside its teacher's, from the same noise.

    A row has the clean images that a model predicts at the times of the
    student's steps; its last image is the result.

    Args:
      model: such as "halve/004"; by default the last student.
      num_images: the number of noises; each has a row of the teacher and a row
        of the student.
      num_steps, seed, label: see `sample`.
      plain: whether to draw the images alone, without titles and classes.

    Raises:
      ValueError: if the teacher is not a model of this run, or for the reasons
        of `sample`.
    """
    artist = self._artist
    self._check_is_run("drawn step by step")
    assert isinstance(artist, RunArtist)  # because it is a run
    wish = Wish(
      num_images=num_images, num_steps=num_steps, seed=seed, label=label
    )
    return step_by_step(artist, model, wish).sheet(plain=plain)

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
    """Measures each model's distance to the data, like `diffdistill evaluate`.

    The workdir keeps each finished row, so a second call continues after the
    last finished row. An argument that is left out has the config's value.

    Args:
      num_steps: the numbers of steps of the teacher's sampler, one row each. A
        student is judged if its own number of steps is one of these.
      num_images: the number of images in a row, 20 or more.
      seed: the seed of the noise.
      batch_size: the number of images in a batch; a smaller batch needs less
        memory.
      inception: the file of the FID network's weights. If neither this argument
        nor the config names the file, DIFFDISTILL_INCEPTION may name it. If it
        does not either, the run's own classifier judges.
      reference: an .npz of the FID network's statistics of the data.
      exported: folders of exported models that make images of the same shape,
        which are judged too.

    Raises:
      ValueError: if the run has no teacher or no classifier to judge by, or if
        no distance can be measured with one of these values.
    """
    self._check_is_run("judged")
    steps = None if num_steps is None else several("num_steps", num_steps)
    return evaluate.judge(
      self.folder,
      num_images=_whole("num_images", num_images, SAMPLES),
      num_steps=steps
      and tuple(whole_number("num_steps", n, STEPS) for n in steps),
      seed=_whole("seed", seed, SEED),
      batch_size=_whole("batch_size", batch_size, BATCH_SIZE),
      inception=_text("inception", inception),
      reference=_text("reference", reference),
      exported=[
        place_of("exported", path) for path in several("exported", exported)
      ],
    )

  def curve(self) -> Picture:
    """A chart of the largest evaluation's distances against sampler steps.

    Raises:
      ValueError: if there is no evaluation yet, or a damaged one.
      ImportError: if matplotlib is not installed.
    """
    self._check_is_run("drawn as a curve")
    return charts.distance_curve(self.folder)

  def losses(self, stage: str) -> Picture:
    """A chart of a stage's recorded losses and other numbers against updates.

    Args:
      stage: the name of the stage, such as "halve"; its rounds are drawn one
        after the other.

    Raises:
      ValueError: if the stage has no records of updates.
      ImportError: if matplotlib is not installed.
    """
    self._check_is_run("drawn as losses")
    return charts.stage_curves(self.folder, stage)

  def cost(self) -> Table[Mapping[str, Any]]:
    """The cost of each round, and of all rounds together.

    The passes count images forward through the denoiser, and a gradient counts
    as three. The seconds are wall-clock time and include compiling and saving.
    The peak memory is the most that the process or a device had held until the
    end of the round; not every device states its memory.
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
    """Writes a model in another format, with a card, like `diffdistill export`.

    Args:
      model: the name of the model; None means the last finished one.
      out: a new or empty folder.
      kind: the format: "safetensors", "stablehlo" or "diffusers".
      num_steps: the number of sampler steps; by default the number that a
        student was made for, or the largest at which a teacher is judged.

    Raises:
      ValueError: if the format cannot hold the model, or if the model is not
        finished.
    """
    self._check_is_run("exported")
    export.export(self.folder, model, num_steps, kind, place_of("out", out))

  def _check_is_run(self, what: str) -> None:
    if self.exported:
      raise ValueError(
        f"{self.folder} holds an exported model without its run, so it cannot"
        f" be {what}; open the workdir of the run"
      )

  def __getstate__(self) -> dict[str, Any]:
    """The fields alone; a copy loads weights and compiles samplers anew."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _artist(self) -> RunArtist | ExportArtist:
    return (ExportArtist if self.exported else RunArtist)(self.folder)


def _whole(name: str, value: int | None, allowed: Range) -> int | None:
  return None if value is None else whole_number(name, value, allowed)


def _text(name: str, path: Path | None) -> str | None:
  return None if path is None else str(place_of(name, path))
