"""Draws images of the finished models of a run, or of an exported model."""

import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from diffdistill.arrays import Params
from diffdistill.diffusion.guidance import Guidance
from diffdistill.evaluation import grids, titles
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.interpolated import interpolated
from diffdistill.evaluation.labelled import (
  Labels,
  labelled_rows,
  labelled_sheet,
)
from diffdistill.evaluation.shown import Picture, Table
from diffdistill.images import from_uint8, to_uint8
from diffdistill.judging.exported import read_exported
from diffdistill.ranges import (
  GUIDANCE,
  IN_A_ROW,
  LABEL,
  SAMPLES,
  SEED,
  STEPS,
  check_number,
  whole_number,
)
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts
from diffdistill.tools.finished import (
  STUDENT,
  TEACHER,
  Model,
  finished,
  finished_model,
)
from diffdistill.tools.speaking import say
from diffdistill.training.effects import check_images
from diffdistill.training.sharding import make_mesh, replicated

# The batch size of an exported model, which has no config that states one.
EXPORTED_AT_A_TIME = 500


# The ranges of the whole numbers of a wish.
WHOLE = {
  "num_images": SAMPLES,
  "num_steps": STEPS,
  "seed": SEED,
  "label": LABEL,
  "interpolate": IN_A_ROW,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
  """The images that a caller wants to be drawn.

  Args:
    num_images: the number of images, or of rows if `interpolate` is set.
    num_steps: the number of sampler steps. None means the number that a student
      was made for, or the largest at which a teacher is judged.
    seed: the seed of the noise, in [0, 2^32).
    label: the class of all images; None means that classes are as frequent as
      in the data.
    guidance: the weight of the guidance. None means the config's weight for a
      teacher, and 0 for other models.
    interpolate: the number of images in a row, 2 or more, from one noise to
      another (Luhman & Luhman 2021 show 11). None draws independent images.

  Raises:
    ValueError: if a number is out of its range, or not whole where it must be.
  """

  num_images: int
  num_steps: int | None = None
  seed: int = 0
  label: int | None = None
  guidance: float | None = None
  interpolate: int | None = None

  def __post_init__(self):
    for name, allowed in WHOLE.items():
      value = getattr(self, name)
      if value is not None:
        # The dataclass is frozen, so that nothing else changes a wish.
        object.__setattr__(self, name, whole_number(name, value, allowed))
    if self.guidance is not None:
      check_number("guidance", self.guidance, GUIDANCE)

  @property
  def count(self) -> int:
    """The number of images to draw, in all rows together."""
    return self.num_images * (self.interpolate or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
  """Images of a model.

  Args:
    images: the images.
    model: the name of the model.
    num_steps: the number of sampler steps.
    wish: the request for these images.
    labels: the class that the model was given for each image; None if the model
      has no classes.
    class_names: the names of the classes; empty if they have only numbers.
  """

  images: UInt8[np.ndarray, "n h w c"]
  model: str
  num_steps: int
  wish: Wish
  labels: Int[np.ndarray, " n"] | None
  class_names: tuple[str, ...] = ()

  def npz(self) -> bytes:
    """An .npz of arr_0, the images, and arr_1, the labels if there are any.

    These are the names in the files of Dhariwal & Nichol 2021
    (guided-diffusion), whose evaluator reads arr_0.
    """
    arrays = [self.images]
    if self.labels is not None:
      arrays.append(self.labels.astype(np.int64))
    data = io.BytesIO()
    np.savez_compressed(data, *arrays)
    return data.getvalue()

  @property
  def classes(self) -> tuple[str, ...]:
    """The class of each image in words; empty for a model without classes."""
    return titles.class_titles(self.labels, self.class_names)

  def sheet(self, *, plain: bool = False) -> Picture:
    """A picture of the images side by side, with a title and their classes.

    If the images are interpolated, each row leads from one noise to another.

    Args:
      plain: whether to draw the images alone, without any text.
    """
    wish, images = self.wish, from_uint8(self.images)
    if plain:
      return Picture(grids.as_png(grids.sheet(images, wish.interpolate)))
    facts = [f"seed {wish.seed}"]
    if wish.guidance is not None:
      facts.append(f"guidance {wish.guidance:g}")
    rows, columns, below = (), (), self.classes
    if wish.interpolate is not None:
      facts.append("each row from one noise to another")
      rows, below = below[:: wish.interpolate], ()
      ends = wish.interpolate - 1
      columns = [f"{round(100 * i / ends)} %" for i in range(ends + 1)]
    labels = Labels(
      title=titles.sheet_title(self.model, self.num_steps, *facts),
      rows=rows,
      columns=columns,
      images=below,
    )
    sheet = labelled_sheet(images, labels, wish.interpolate)
    return Picture(grids.as_png(sheet))


def compared_sheet(drawn: Sequence[Drawn], *, plain: bool = False) -> Picture:
  """A picture with a row of images for each model; all rows of one wish.

  Args:
    drawn: the images of each model.
    plain: whether to draw the images alone, without any text.
  """
  images = [from_uint8(one.images) for one in drawn]
  count = len(images[0])
  if plain:
    return Picture(grids.as_png(grids.sheet(np.concatenate(images), count)))
  names = titles.row_titles([(one.model, one.num_steps) for one in drawn])
  columns = titles.column_titles([one.classes for one in drawn], count)
  if drawn[0].wish.interpolate is not None:
    columns = []  # most images are between two noises
  labels = Labels(title=titles.SAME_NOISE, columns=columns)
  rows = dict(zip(names, images, strict=True))
  return Picture(grids.as_png(labelled_rows(rows, labels)))


class RunArtist:
  """Draws images of the finished models of a run; compiles each sampler once.

  Args:
    workdir: the folder of the run.

  Raises:
    ValueError: if the workdir holds no run, or if the run was trained with
      another precision of matrix products than JAX uses now.
  """

  def __init__(self, workdir: epath.Path):
    self.run: Experiment = from_config.reopen(workdir)
    environment.check(workdir)
    self._workdir = workdir
    # The cache prevents printing the same line twice.
    self._say = functools.cache(say)

    @functools.cache
    def generator(
      sampler: Sampler,
      batch_size: int,
      label: int | None,
      guidance: Guidance | None,
    ) -> Generator:
      return self.run.generator(sampler, batch_size, label, guidance)

    @functools.lru_cache(maxsize=1)
    def params(name: str) -> Params:
      return self.run.product(workdir, name)

    self._generator, self._params = generator, params

  def models(self) -> Table[Model]:
    """The models that are finished now."""
    return finished(self.run, self._workdir)

  def draw(self, name: str | None, wish: Wish) -> Drawn:
    """Draws images of a model.

    Args:
      name: the name of the model; None means the last finished one.
      wish: the images to draw.

    Raises:
      ValueError: if the model is not finished, or cannot draw such images.
    """
    run = self.run
    stage, round_, steps = finished_model(
      run, self._workdir, name, wish.num_steps, self._say
    )
    sampler = stage.objective.sampler
    assert sampler is not None  # a model that can be drawn has a sampler
    check_images(wish.count, run.source.image_shape)
    guidance = run.usual_guidance(round_)
    if wish.guidance is not None:
      guidance = dataclasses.replace(run.guidance, weight=wish.guidance)
    size = min(run.evaluation.batch_size, wish.num_images)
    generator = self._generator(sampler, size, wish.label, guidance)
    drawn = _draw(
      generator, self._params(round_.name), wish, round_.name, steps
    )
    return dataclasses.replace(drawn, class_names=run.source.class_names)


class ExportArtist:
  """Draws images of an exported model.

  Args:
    folder: a folder of safetensors or StableHLO, written by `diffdistill
      export`.

  Raises:
    ValueError: if the folder holds no model, or a damaged one.
  """

  def __init__(self, folder: epath.Path):
    environment.pin()
    self._model = model = read_exported(folder)
    mesh = make_mesh()
    self._params = hosts.place(model.params, replicated(mesh))
    self._generator = functools.cache(
      lambda batch_size, label: model.generator(mesh, batch_size, label)
    )

  def models(self) -> Table[Model]:
    """A table with the one model of the folder."""
    name, steps = self._model.name, self._model.num_steps
    kind = STUDENT if steps else TEACHER
    return Table([Model(name=name, kind=kind, num_steps=steps or None)])

  def draw(self, name: str | None, wish: Wish) -> Drawn:
    """Draws images of the model.

    Args:
      name: the name of the model, or None.
      wish: the images to draw; a teacher needs `num_steps`.

    Raises:
      ValueError: if the folder has another name, if the wish has guidance, if
        the student was made for another number of steps, or if the model is a
        teacher and no number of steps is given.
    """
    model, asked = self._model, wish.num_steps
    if name not in (None, model.name):
      raise ValueError(
        f"model is {name!r}, but the folder holds {model.name} alone; pass that"
        " or none"
      )
    if wish.guidance is not None:
      raise ValueError(
        f"guidance is {wish.guidance}, but {model.name} has the guidance that"
        " it was exported with; leave it out"
      )
    (steps,) = model.steps(() if asked is None else (asked,))
    if asked not in (None, steps):
      raise ValueError(
        f"num_steps is {asked}, but {model.name} was made for {steps}; leave it"
        " out"
      )
    check_images(wish.count, model.image_shape)
    size = min(EXPORTED_AT_A_TIME, wish.num_images)
    generator = self._generator(size, wish.label)
    return _draw(generator, self._params, wish, model.name, steps)


def _draw(
  generator: Generator,
  params: Params,
  wish: Wish,
  model: str,
  num_steps: int,
) -> Drawn:
  """Draws images of a model and rounds them to bytes."""
  seed, count, between = wish.seed, wish.num_images, wish.interpolate
  labels = generator.labels_of(0, count)
  if between is None:
    batches = generator.batches(params, seed, count, num_steps)
    images = np.concatenate([to_uint8(batch) for batch in batches])
  else:
    ways = interpolated(generator, params, seed, count, between, num_steps)
    images = to_uint8(ways)
    labels = None if labels is None else np.repeat(labels, between)
  return Drawn(
    images=images, model=model, num_steps=num_steps, wish=wish, labels=labels
  )
