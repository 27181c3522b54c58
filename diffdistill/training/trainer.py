"""The loop: every round of every stage, resumed where it was left."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array

from diffdistill.arrays import Key, Params
from diffdistill.data.pipeline import Pipeline
from diffdistill.objectives.objective import Hparams
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import Round, Stage, curriculum
from diffdistill.training.report import Meter, Report
from diffdistill.training.sharding import (
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import (
  TrainState,
  create_state,
  with_shardings,
)
from diffdistill.training.step import Update, make_update

# (stage, round, its product so far, updates done)
Observe = Callable[[Stage, Round, Params, int], None]


class TrainingStoppedError(Exception):
  """Training cannot usefully go on; the message says why, in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadence:
  """How often things happen, in updates; 0 for never.

  Args:
    log: a record of metrics and the progress line.
    checkpoint: a checkpoint; one is lost at most by a crash.
    observe: a sample sheet; one comes at the end of each round in any case.
    keep: checkpoints kept while a round runs.
    max_skipped: updates in a row that may be non-finite before the run stops.
  """

  log: int = 100
  checkpoint: int = 1000
  observe: int = 0
  keep: int = 2
  max_skipped: int = 50

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 0:
        raise ValueError(
          f"cadence.{field.name} is {getattr(self, field.name)}; pass 0 or more"
        )
    if self.log < 1 or self.keep < 1:
      raise ValueError(
        f"cadence.log is {self.log} and cadence.keep {self.keep}; pass 1 or"
        " more"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFunctions:
  """The compiled functions of one stage: one executable for all its rounds."""

  init: Callable[..., TrainState]
  updates: Mapping[str, Update]
  abstract: TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
  """Trains what is not trained yet.

  Args:
    stages: the recipe.
    workdir: where rounds live.
    seed: of everything random.
    batches: the data of a (batch size, seed).
    mesh: from `make_mesh`.
    cadence: how often to log, save and observe.
    observe: shown each round's product, at the cadence and at the end.
  """

  stages: tuple[Stage, ...]
  workdir: epath.Path
  seed: int
  batches: Callable[[int, int], Pipeline]
  mesh: Mesh
  cadence: Cadence
  observe: Observe

  def __post_init__(self):
    for stage in self.stages:
      if stage.batch_size % self.mesh.size:
        raise ValueError(
          f"stages.{stage.name}.batch_size is {stage.batch_size}, which the"
          f" {self.mesh.size} devices do not divide; pass a multiple of"
          f" {self.mesh.size}"
        )

  def run(self) -> None:
    """Trains every round that has no final result, in order.

    Raises:
      TrainingStoppedError: where updates stay non-finite.
    """
    rounds = curriculum(self.stages)
    left = sum(stage.batch_size * r.num_updates for stage, r in rounds)
    report = Report(self.workdir, left)
    stage_functions: dict[str, StageFunctions] = {}
    for stage, round_ in rounds:
      round_dir = self.workdir / round_.name
      if not checkpoint.has_final(round_dir):
        frozen = self._frozen(round_)
        if stage.name not in stage_functions:
          stage_functions[stage.name] = self.compile(stage, frozen, report)
        functions = stage_functions[stage.name]
        # Closed whatever happens: what is being saved is worth having.
        with contextlib.closing(
          checkpoint.Checkpoints(round_dir, self.cadence.keep)
        ) as checkpoints:
          self._train(
            stage, round_, functions, frozen, checkpoints, report, left
          )
      # Here, and not in _train: a crash may come right after the final result.
      checkpoint.discard(round_dir)
      left -= stage.batch_size * round_.num_updates
    report.close()

  def compile(
    self, stage: Stage, frozen: Mapping[str, Params], report: Report
  ) -> StageFunctions:
    """The stage's jitted functions (compiled when first called)."""
    objective, optimizer = stage.objective, stage.optimizer

    def init(key: Key, frozen: Mapping[str, Params]) -> TrainState:
      return create_state(objective, optimizer, key, frozen)

    shapes = jax.eval_shape(init, jax.random.key(0), frozen)
    shardings = tree_shardings(shapes, self.mesh)
    for name, tree in shapes.params.items():
      count = sum(leaf.size for leaf in jax.tree.leaves(tree))
      report.say(f"{stage.name}: {count:,} parameters in the {name}")
    return StageFunctions(
      init=jax.jit(init, out_shardings=shardings),
      updates={
        name: make_update(objective, name, optimizer, shardings, self.mesh)
        for name in objective.trains
      },
      abstract=with_shardings(shapes, self.mesh),
    )

  def _frozen(self, round_: Round) -> dict[str, Params]:
    product = {stage.name: stage.objective.trains[0] for stage in self.stages}
    return {
      name: checkpoint.load_final(
        self.workdir / source, product[source.split("/")[0]], self.mesh
      )
      for name, source in round_.frozen.items()
    }

  def _train(
    self,
    stage: Stage,
    round_: Round,
    functions: StageFunctions,
    frozen: Mapping[str, Params],
    checkpoints: checkpoint.Checkpoints,
    report: Report,
    left: int,
  ) -> None:
    """One round, from its newest checkpoint or its beginning to its end."""
    key = self._on_device(
      jax.random.fold_in(jax.random.key(self.seed), round_.code)
    )
    state = checkpoints.restore(functions.abstract)
    first = int(state.step) if state is not None else 0
    if state is None:
      state = functions.init(key, frozen)
    else:
      report.say(f"{round_.name}: goes on from update {first}")
    report.start_round(round_.name, first)

    pipeline = self.batches(stage.batch_size, self.seed ^ round_.code)
    batches = pipeline.iterate(first)
    meter = Meter(stage.batch_size)
    # This order is law: evaluate the old state, save it, fetch the batch,
    # update each name in turn, count, report.
    for step in range(first, round_.num_updates):
      if step > first and self._due(self.cadence.observe, step):
        self._show(stage, round_, state)
      if step > first and self._due(self.cadence.checkpoint, step):
        checkpoints.save(state, step)
      batch = shard_batch(next(batches), self.mesh)
      hparams = self._hparams(stage, round_, step)
      with jax.transfer_guard("disallow"):
        for name in stage.objective.turn(step):
          state, metrics = functions.updates[name](
            state, frozen, batch, key, hparams
          )
          meter.add(metrics)
      done = step + 1
      if self._due(self.cadence.log, done) or done == round_.num_updates:
        values, speed = meter.read()
        self._stop_if_not_finite(round_, done, values)
        values |= {
          "learning_rate": float(hparams["learning_rate"]),
          "images": done * stage.batch_size,
          "images_per_second": round(speed, 1),
        }
        report.write(round_.name, done, values)
        todo = left - done * stage.batch_size
        report.progress(round_.name, done, round_.num_updates, speed, todo)
    self._stop_if_all_skipped(round_, state)
    # Saved before it is shown: a picture that fails loses no work.
    checkpoint.save_final(self.workdir / round_.name, state)
    self._show(stage, round_, state)

  def _show(self, stage: Stage, round_: Round, state: TrainState) -> None:
    """Shows the observer the product so far: the average where there is one."""
    product = {**state.params, **state.ema}[stage.objective.trains[0]]
    self.observe(stage, round_, product, int(state.step))

  def _due(self, every: int, step: int) -> bool:
    return bool(every) and step % every == 0

  def _hparams(self, stage: Stage, round_: Round, step: int) -> Hparams:
    rate = stage.optimizer.rate(step, round_.num_updates)
    return self._on_device(
      {
        "num_steps": np.int32(round_.num_steps),
        "learning_rate": np.float32(rate),
      }
    )

  def _on_device(self, tree: Any) -> Any:
    return jax.device_put(tree, replicated(self.mesh))

  def _stop_if_not_finite(
    self, round_: Round, step: int, values: Mapping[str, float]
  ) -> None:
    for name, value in values.items():
      if (
        name.endswith("/skipped_in_a_row") and value > self.cadence.max_skipped
      ):
        raise TrainingStoppedError(
          f"{round_.name} stopped at update {step}: the last {value:.0f}"
          " updates had gradients that are not finite; lower the learning rate"
          " or raise the warm-up, then run the command in a new workdir, or in"
          f" this one without its folder {round_.stage}"
        )

  def _stop_if_all_skipped(self, round_: Round, state: TrainState) -> None:
    """No round ends as it began, or with weights that are not numbers."""
    for name, opt_state in state.opt_state.items():
      skipped = int(opt_state.total_notfinite)
      finite = bool(_all_finite(state.params[name]))
      if skipped == round_.num_updates or not finite:
        state_of = "finite" if finite else "not finite"
        raise TrainingStoppedError(
          f"{round_.name} made no usable {name}: {skipped} of"
          f" {round_.num_updates} gradients were not finite and its weights are"
          f" {state_of}; lower the learning rate, then run the command in a new"
          f" workdir, or in this one without its folder {round_.stage}"
        )


@jax.jit
def _all_finite(tree: Params) -> Array:
  """Whether every number of a tree is finite; one small executable."""
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()
