"""Traces the programs of a recipe without data, weights or devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffdistill.arrays import Params
from diffdistill.evaluation.generator import Generator
from diffdistill.objectives.objective import Now, Turn
from diffdistill.run.experiment import Experiment
from diffdistill.training.curriculum import curriculum
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.sharding import batch_sharding, replicated
from diffdistill.training.state import (
  create_state,
  in_dtype,
  with_shardings,
)
from diffdistill.training.step import make_update
from diffdistill.training.trainer import check_batches
from diffdistill.training.training_stage import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A program of a recipe, and how often the recipe runs it.

  Args:
    name: "halve/student", the update of a tree in a stage; or "pairs/teacher"
      or "sampler", one step of a sampler.
    stage: the stage of the recipe; "" for the sampler of its last student.
    images: the number of images of one run, over all devices.
    runs: the largest number of runs in the whole recipe; 0 for the sampler of
      the last student, which users run as often as they like.
    seconds: the program's share of the seconds after which its stage ends by
      the clock; 0 if the stage does not end by the clock.
    trace: traces the program, with the shardings of its arguments.
    trained: the number of parameters that the program changes.
    state_bytes: the bytes of all trees that the program keeps or reads, on one
      device.
  """

  name: str
  stage: str
  images: int
  runs: float
  trace: Callable[[], jax.stages.Traced]
  trained: int
  state_bytes: float
  seconds: float = 0.0

  def chip_hours(self, seconds: float, chips: int) -> float:
    """The chip-hours of all runs, if each takes so many seconds."""
    total = self.runs * seconds
    return min(total, self.seconds or total) * chips / 3600


def programs(run: Experiment) -> Iterator[Program]:
  """Yields the updates of a recipe in order, then its last student's sampler.

  Raises:
    ValueError: if a batch size is no multiple of the number of devices.
  """
  check_batches(run.stages, run.mesh)
  for stage in run.stages:
    yield from stage.by_kind(
      train=functools.partial(_updates, run),
      take=lambda stage: [],
      make=lambda stage: [_pairs(run, stage)],
    )
  samplers = [stage.objective.sampler for stage, _ in run.models.values()]
  last = samplers[-1] if samplers else None
  if last is not None:
    generator = run.generator(last, run.evaluation.batch_size)
    yield _sampling(run, "sampler", "", generator, 0.0)


def _updates(run: Experiment, stage: Training) -> Sequence[Program]:
  turns = dict.fromkeys(stage.objective.cycle)
  return [_update(run, stage, turn) for turn in turns]


def _update(run: Experiment, stage: Training, turn: Turn) -> Program:
  objective, optimizers = stage.objective, stage.all_optimizers
  frozen, key = _frozen(run, stage), _key(run)
  shapes = jax.eval_shape(
    lambda key, frozen: create_state(objective, optimizers, key, frozen),
    key,
    frozen,
  )
  state = with_shardings(shapes, run.layout)
  frozen = {name: frozen[name] for name in objective.needs}
  if "teacher" in frozen:
    cast = functools.partial(in_dtype, dtype=stage.teacher_dtype)
    frozen["teacher"] = jax.eval_shape(cast, frozen["teacher"])
  frozen = {n: with_shardings(t, run.layout) for n, t in frozen.items()}
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  update: Any = make_update(
    objective, turn, optimizers, shardings, run.mesh, stage.accumulate
  )
  whole, real = (_scalar(run, dtype) for dtype in (jnp.int32, jnp.float32))
  now = Now(num_steps=whole, guided=real, step=whole, progress=real)
  rates = dict.fromkeys(optimizers, real)
  batch = batch_shapes(run, stage)
  share = objective.cycle.count(turn) / len(objective.cycle)
  updates = sum(
    round_.num_updates
    for other, round_ in curriculum(run.stages)
    if other is stage
  )
  return Program(
    name=f"{stage.name}/{'+'.join(turn)}",
    stage=stage.name,
    images=stage.batch_size,
    runs=updates * share,
    trace=lambda: update.trace(state, frozen, batch, key, now, rates),
    trained=sum(_count(state.params[name]) for name in turn),
    state_bytes=_bytes_of_one((state, frozen)),
    seconds=60 * stage.minutes * share,
  )


def _pairs(run: Experiment, stage: Pairs) -> Program:
  (round_,) = (r for s, r in curriculum(run.stages) if s is stage)
  guidance = stage.guidance if round_.guided else None
  generator = run.generator(
    stage.sampler, stage.batch_size, guidance=guidance, half=True
  )
  made = stage.num_pairs + stage.held_out
  runs = made * stage.num_steps / stage.batch_size
  program = _sampling(run, f"{stage.name}/teacher", stage.name, generator, runs)
  return dataclasses.replace(program, seconds=60 * stage.minutes)


def _sampling(
  run: Experiment, name: str, stage: str, generator: Generator, runs: float
) -> Program:
  params = with_shardings(_denoiser_shapes(run), run.layout)
  return Program(
    name=name,
    stage=stage,
    images=generator.batch_size,
    runs=runs,
    trace=lambda: generator.trace(params),
    trained=0,
    state_bytes=_bytes_of_one(params),
  )


def _frozen(run: Experiment, stage: Training) -> dict[str, Params]:
  """Returns the shapes of a stage's frozen trees, by name."""
  return {
    name: jax.eval_shape(stage.objective.frozen_init(name), _key(run))
    for name in stage.frozen
  }


def _denoiser_shapes(run: Experiment) -> Params:
  return jax.eval_shape(run.denoiser.network.init, _key(run))


def batch_shapes(
  run: Experiment, stage: Training
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a stage's batch, as the data pipelines give it."""
  shape = (stage.batch_size, *run.source.image_shape)

  def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(run.mesh))

  label = rows(shape[:1], jnp.int32)
  if stage.objective.consumes == "images":
    images = {"image": rows(shape, run.source.image_dtype), "label": label}
    return {**images, "flip": rows(shape[:1], bool)} if run.flip else images
  pairs = {"image": rows(shape, jnp.uint8), "noise": rows(shape, jnp.float16)}
  return {**pairs, "label": label} if run.num_classes else pairs


def _key(run: Experiment) -> jax.ShapeDtypeStruct:
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(
    key.shape, key.dtype, sharding=replicated(run.mesh)
  )


def _scalar(run: Experiment, dtype: Any) -> Any:
  return jax.ShapeDtypeStruct((), dtype, sharding=replicated(run.mesh))


def _count(tree: Params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes_of_one(tree: Any) -> float:
  """Counts the bytes of the parts of a tree's arrays that one device holds."""
  return float(
    sum(
      leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
      for leaf in jax.tree.leaves(tree)
    )
  )
