"""Draws images of the finished models of a run, or of an exported model."""

import dataclasses
import functools

import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.interpolated import interpolated
from diffdistill.evaluation.shown import Table
from diffdistill.images import to_uint8
from diffdistill.judging.exported import read_exported
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts
from diffdistill.tools.drawn import Drawn, Wish
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
  """A model that is ready to make images.

  Args:
    model: the name of the model.
    num_steps: the number of sampler steps.
    sampler, generator, params: the parts of the model.
  """

  model: str
  num_steps: int
  sampler: Sampler
  generator: Generator
  params: Params


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
      guidance: Guidance | Told | None,
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
    maker = self.maker(name, wish)
    drawn = _draw(
      maker.generator, maker.params, wish, maker.model, maker.num_steps
    )
    return dataclasses.replace(drawn, class_names=self.run.source.class_names)

  def maker(self, name: str | None, wish: Wish) -> Maker:
    """Prepares a model for a wish; the arguments and errors are of `draw`."""
    run = self.run
    stage, round_, steps = finished_model(
      run, self._workdir, name, wish.num_steps, self._say
    )
    sampler = stage.objective.sampler
    assert sampler is not None  # a model that can be drawn has a sampler
    check_images(wish.count, run.source.image_shape)
    guidance = run.usual_guidance(round_)
    if wish.guidance is not None:
      guidance = run.guidance_at(round_, wish.guidance)
    size = min(run.evaluation.batch_size, wish.num_images)
    return Maker(
      model=round_.name,
      num_steps=steps,
      sampler=sampler,
      generator=self._generator(sampler, size, wish.label, guidance),
      params=self._params(round_.name),
    )


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
      lambda batch_size, label, weight: model.guided(weight).generator(
        mesh, batch_size, label
      )
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
      ValueError: if the folder has another name, if the wish has guidance that
        the model cannot be told, if the student was made for another number of
        steps, or if the model is a teacher and no number of steps is given.
    """
    model, asked = self._model, wish.num_steps
    if name not in (None, model.name):
      raise ValueError(
        f"model is {name!r}, but the folder holds {model.name} alone; pass that"
        " or none"
      )
    (steps,) = model.steps(() if asked is None else (asked,))
    if asked not in (None, steps):
      raise ValueError(
        f"num_steps is {asked}, but {model.name} was made for {steps}; leave it"
        " out"
      )
    check_images(wish.count, model.image_shape)
    size = min(EXPORTED_AT_A_TIME, wish.num_images)
    generator = self._generator(size, wish.label, wish.guidance)
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
