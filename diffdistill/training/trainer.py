"""The loop: every round of every stage, resumed where it was left."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from diffdistill.arrays import Key, Metrics, Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.data.pairs import PairStore
from diffdistill.objectives.objective import Hparams
from diffdistill.system import hosts, signals
from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence, check_cadence
from diffdistill.training.clock import Clock
from diffdistill.training.curriculum import curriculum
from diffdistill.training.inputs import Data, Inputs
from diffdistill.training.non_finite import check_metrics, check_product
from diffdistill.training.pair_rounds import PairRounds
from diffdistill.training.passes import round_passes
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.report import Meter, Report, Work
from diffdistill.training.running import Checkpoints
from diffdistill.training.selection import Selector
from diffdistill.training.sharding import (
  Layout,
  replicated,
  shard_batch,
  shard_batches,
  tree_shardings,
)
from diffdistill.training.stage import SECOND_MOMENTS, Pairs, Round, Stage
from diffdistill.training.state import (
  TrainState,
  create_state,
  in_dtype,
  with_shardings,
)
from diffdistill.training.step import (
  Update,
  make_evaluate,
  make_update,
  make_updates,
)
from diffdistill.training.watchdog import Watchdog

# (stage, round, its product so far, updates done)
Observe = Callable[[Stage, Round, Params, int], None]
# (stage, round, its product so far, images to measure on) -> the lower the
# better
Distance = Callable[[Stage, Round, Params, int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFunctions:
  """The compiled functions of one stage: one executable for all its rounds."""

  init: Callable[..., TrainState]
  updates: Mapping[str, Update]
  several: Update
  evaluate: Callable[..., Metrics]
  abstract: TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
  """Trains what is not trained yet.

  Args:
    stages: the recipe.
    workdir: where rounds live.
    seed: of everything random.
    batches: the data of a (batch size, seed, name of a stage).
    pairs: the pairs of a stage and of a teacher, on disk.
    outside: frozen weights that are not of this run, of a (stage, name,
      source).
    layout: of its mesh.
    cadence: how often to log, save and observe.
    observe: shown each round's product, at the cadence and at the end.
    distance: scores a product, where a stage selects by distance.
    begins: told that a stage is about to train; may refuse it.
    preemption: when to leave; never by default.
    watchdog: is told of all that is finished; one that sleeps by default.
    now: of the clock that ends rounds.
  """

  stages: tuple[Stage | Pairs, ...]
  workdir: epath.Path
  seed: int
  batches: Callable[[int, int, str], Data]
  pairs: Callable[[Pairs, Round, Params], PairStore]
  outside: Callable[[Stage | Pairs, str, str], Params]
  layout: Layout
  cadence: Cadence
  observe: Observe
  distance: Distance
  begins: Callable[[Stage], None] = lambda stage: None
  preemption: Preemption = dataclasses.field(default_factory=Preemption)
  watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)
  now: Callable[[], float] = time.monotonic

  def __post_init__(self):
    check_batches(self.stages, self.mesh)
    check_cadence(self.stages, self.cadence)

  @property
  def mesh(self) -> Mesh:
    return self.layout.mesh

  @functools.cached_property
  def _inputs(self) -> Inputs:
    return Inputs(
      stages=self.stages,
      workdir=self.workdir,
      seed=self.seed,
      layout=self.layout,
      batches=self.batches,
      pairs=self._pair_rounds.store,
      outside=self.outside,
    )

  @functools.cached_property
  def _pair_rounds(self) -> PairRounds:
    return PairRounds(
      workdir=self.workdir,
      pairs=self.pairs,
      mesh=self.mesh,
      preemption=self.preemption,
      watchdog=self.watchdog,
      now=self.now,
    )

  def run(self) -> None:
    """Trains every round that has no final result, in order.

    Raises:
      TrainingStoppedError: where updates stay non-finite.
      PreemptedError: where it was asked to leave; what is done is saved.
    """
    rounds = curriculum(self.stages)
    works = [_work(stage, round_) for stage, round_ in rounds]
    report = Report(self.workdir, _sum(works))
    stage_functions: dict[str, StageFunctions] = {}
    for i, (stage, round_) in enumerate(rounds):
      self.watchdog.patience()
      begun = time.monotonic()
      round_dir = self.workdir / round_.name
      if not checkpoint.is_done(round_dir, self.layout):
        frozen = self._inputs.frozen(stage, round_)
        if isinstance(stage, Pairs):
          self._pair_rounds.make(stage, round_, frozen["teacher"], report)
        elif stage.source:
          self._take(stage, round_, report)
        else:
          if stage.name not in stage_functions:
            self.begins(stage)
            stage_functions[stage.name] = self.compile(stage, frozen, report)
          functions = stage_functions[stage.name]
          with Checkpoints(round_dir, self.cadence.keep) as checkpoints:
            later = _sum(works[i + 1 :])
            self._train(
              stage,
              round_,
              functions,
              frozen,
              checkpoints,
              report,
              later,
              begun,
            )
      # Here, and not in _train: a crash may come right after the final result.
      checkpoint.discard(round_dir)
    report.close()

  def compile(
    self, stage: Stage, frozen: Mapping[str, Params], report: Report
  ) -> StageFunctions:
    """The stage's jitted functions (compiled when first called)."""
    objective, optimizer = stage.objective, stage.optimizer

    def init(key: Key, frozen: Mapping[str, Params]) -> TrainState:
      return create_state(objective, optimizer, key, frozen)

    shapes = jax.eval_shape(init, jax.random.key(0), frozen)
    abstract = with_shardings(shapes, self.layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    for name, tree in shapes.params.items():
      count = sum(leaf.size for leaf in jax.tree.leaves(tree))
      report.say(f"{stage.name}: {count:,} parameters in the {name}")
    return StageFunctions(
      init=jax.jit(init, out_shardings=shardings),
      updates={
        name: make_update(objective, name, optimizer, shardings, self.mesh)
        for name in objective.trains
      },
      several=make_updates(objective, optimizer, shardings, self.mesh),
      evaluate=make_evaluate(objective, self.mesh),
      abstract=abstract,
    )

  def _take(self, stage: Stage, round_: Round, report: Report) -> None:
    """The product of a stage whose weights were made elsewhere."""
    name = stage.objective.trains[0]
    product = self.outside(stage, name, stage.source)
    report.say(f"{round_.name}: {stage.source}")
    checkpoint.save_final(self.workdir / round_.name, {name: product})
    self.observe(stage, round_, product, 0)

  def _train(
    self,
    stage: Stage,
    round_: Round,
    functions: StageFunctions,
    frozen: dict[str, Params],
    checkpoints: Checkpoints,
    report: Report,
    later: Work,
    begun: float,
  ) -> None:
    """One round, from its newest checkpoint or its beginning to its end."""
    round_dir = self.workdir / round_.name
    key = self._on_device(
      jax.random.fold_in(jax.random.key(self.seed), round_.code)
    )
    state = checkpoints.restore(functions.abstract)
    first = int(state.step) if state is not None else 0
    compiling = 0.0
    if state is None:
      start = time.monotonic()
      state = jax.block_until_ready(functions.init(key, frozen))
      compiling = time.monotonic() - start
    else:
      report.say(f"{round_.name}: goes on from update {first}")
    if stage.teacher_dtype != "float32":
      # In place: the caller holds this mapping, and would hold what it had.
      frozen["teacher"] = self._in_dtype(frozen["teacher"], stage.teacher_dtype)
    report.start_round(round_.name, first)

    data = self._inputs.data(stage, round_, report.say)
    clock = Clock(
      round_dir,
      round_.seconds,
      round_.num_updates,
      stage.updates_per_call,
      self.now,
    )
    if round_.seconds and isinstance(data, PairPipeline):
      shards = data.shards(first, clock.last)
      begun += self._pair_rounds.make_again(
        stage.pairs, data.store, shards, report
      )
    batches = data.iterate(first)
    selector = self._selector(stage, round_, functions, frozen, data)
    meter = Meter(stage.batch_size, begun)
    meter.compiled(compiling)
    passes = round_passes(stage.objective, round_)
    called: set[Update] = set()
    # This order is law: evaluate the old state, save it, look at the clock,
    # fetch the batch, update each name in turn, count, report.
    for step, count in _calls(stage, first, clock):
      if step > first:
        shown = self._due(self.cadence.observe, step)
        scored = selector is not None and selector.due(step)
        if shown or scored:
          jax.block_until_ready(state.step)
          begun = self.now()
          if shown:
            self._show(stage, round_, state)
          if selector and scored:
            self._consider(selector, stage, round_, state, report, meter)
          clock.skip(self.now() - begun)
        if selector and scored and selector.exhausted(step):
          report.say(f"{round_.name}: ends at update {step}, past its best")
          break
      leave = self.preemption.agreed(self.mesh)
      if step > first and (leave or self._due(self.cadence.checkpoint, step)):
        with signals.writing():
          checkpoints.save(state, step)
      if leave:
        # Of what was done since the last record, only its time is missed.
        values, _, seconds = meter.read()
        spent = {k: v for k, v in values.items() if k == "compile_seconds"}
        report.write(round_.name, step, {**spent, "seconds": seconds})
        raise PreemptedError(
          f"asked to leave {round_.name} after update {step}; the same command"
          " goes on from there"
        )
      clock.look(step, functools.partial(jax.block_until_ready, state.step))
      rows = [next(batches) for _ in range(count)]
      rates = [
        stage.optimizer.rate(step + i, clock.last, clock.held)
        for i in range(count)
      ]
      if count == 1:
        calls = [functions.updates[n] for n in stage.objective.turn(step)]
        batch = shard_batch(rows[0], self.mesh)
        hparams = self._hparams(round_, rates[0])
      else:
        calls = [functions.several]
        batch = shard_batches(rows, self.mesh)
        hparams = self._hparams(round_, rates)
      new, called_at = not called.issuperset(calls), time.monotonic()
      with jax.transfer_guard("disallow"):
        for call in calls:
          if call not in called:
            # It compiles first, however long others have been at work.
            self.watchdog.patience()
            called.add(call)
          state, metrics = call(state, frozen, batch, key, hparams)
          meter.add(metrics, count)
          self.watchdog.dispatched(jax.tree.leaves(metrics)[0])
      done = step + count
      if new:
        jax.block_until_ready(state.step)
        meter.compiled(time.monotonic() - called_at)
        clock.start(done)
      # So that nothing of a round that its next score ends goes unrecorded.
      may_be_last = done == clock.last or (
        selector is not None and selector.exhausted(done)
      )
      if self._due(self.cadence.log, done) or may_be_last:
        values, speed, seconds = meter.read()
        check_metrics(round_, done, values, self.cadence.max_skipped)
        values |= {
          "learning_rate": rates[-1],
          "images": done * stage.batch_size,
          "passes": passes(done) * stage.batch_size,
          "images_per_second": round(speed, 1),
          "seconds": seconds,
        }
        report.write(round_.name, done, values)
        todo = _sum([later, _rest(stage, round_, clock, done)])
        report.progress(round_.name, done, clock.length, speed, todo)
    self.watchdog.patience()
    check_product(round_, state)
    if selector and int(state.step) == clock.last:
      self._consider(selector, stage, round_, state, report, meter)
    products = self._products(stage, state, selector)
    checkpoints.check_place()
    # Saved before it is shown: a picture that fails loses no work.
    with signals.writing():
      checkpoint.save_final(round_dir, products)
    self.observe(
      stage, round_, products[stage.objective.trains[0]], int(state.step)
    )

  def _selector(
    self,
    stage: Stage,
    round_: Round,
    functions: StageFunctions,
    frozen: Mapping[str, Params],
    data: Data,
  ) -> Selector | None:
    """What keeps the round's best weights, where its stage selects."""
    if stage.select is None:
      return None
    select, name = stage.select, stage.objective.trains[0]
    hparams = self._hparams(round_, 0.0)
    key = self._on_device(jax.random.key(self.seed))

    def held_out_loss(product: Params) -> float:
      assert isinstance(data, PairPipeline)  # the stage has seen to it
      totals = [
        jax.device_get(
          functions.evaluate(
            {name: product}, frozen, shard_batch(rows, self.mesh), key, hparams
          )[f"{name}/loss"]
        )
        for rows in data.held_out()
      ]
      return float(sum(t for t, _ in totals) / sum(n for _, n in totals))

    def distance(product: Params) -> float:
      return self.distance(stage, round_, product, select.num_images)

    scores = {"held_out_loss": held_out_loss, "distance": distance}
    return Selector(
      select, self.workdir / round_.name, scores[select.by], self.layout
    )

  def _consider(
    self,
    selector: Selector,
    stage: Stage,
    round_: Round,
    state: TrainState,
    report: Report,
    meter: Meter,
  ) -> None:
    assert stage.select is not None
    self.watchdog.patience()
    step, start = int(state.step), time.monotonic()
    score = selector.consider(self._product(stage, state), step)
    seconds = round(time.monotonic() - start, 3)
    took = {"score_seconds": seconds, "seconds": seconds}
    report.write(round_.name, step, {stage.select.by: score, **took})
    meter.skip(seconds)

  def _in_dtype(self, tree: Params, dtype: str) -> Params:
    shardings = tree_shardings(tree, self.layout)
    cast = jax.jit(in_dtype, static_argnums=1, out_shardings=shardings)
    return cast(tree, dtype)

  def _products(
    self, stage: Stage, state: TrainState, selector: Selector | None
  ) -> dict[str, Params]:
    """What a finished round keeps, by name; the first is what it is for."""
    name = stage.objective.trains[0]
    products = {**state.params, name: self._product(stage, state)}
    best = selector.best() if selector else None
    if best is not None:
      products |= {name: best, f"last_{name}": products[name]}
    if name == "teacher":
      products[SECOND_MOMENTS] = stage.optimizer.second_moments(
        state.opt_state[name]
      )
    return products

  def _product(self, stage: Stage, state: TrainState) -> Params:
    """What is trained, so far: its average where there is one."""
    return {**state.params, **state.ema}[stage.objective.trains[0]]

  def _show(self, stage: Stage, round_: Round, state: TrainState) -> None:
    self.watchdog.patience()
    self.observe(stage, round_, self._product(stage, state), int(state.step))

  def _due(self, every: int, step: int) -> bool:
    return bool(every) and step % every == 0

  def _hparams(self, round_: Round, rate: float | list[float]) -> Hparams:
    """Of one update, or of several, one a row."""
    rates = np.asarray(rate, np.float32)
    return self._on_device(
      {
        "num_steps": np.full(rates.shape, round_.num_steps, np.int32),
        "learning_rate": rates,
        "guided": np.full(rates.shape, round_.guided, np.float32),
      }
    )

  def _on_device(self, tree: Any) -> Any:
    return hosts.place(tree, replicated(self.mesh))


def check_batches(stages: Sequence[Stage | Pairs], mesh: Mesh) -> None:
  """Refuses a batch that has not as many rows for each device.

  Raises:
    ValueError: where that is so.
  """
  for stage in stages:
    if stage.batch_size % mesh.size:
      raise ValueError(
        f"stages.{stage.name}.batch_size is {stage.batch_size}, which the"
        f" {mesh.size} devices do not divide; pass a multiple of {mesh.size}"
      )


def _calls(stage: Stage, first: int, clock: Clock) -> Iterator[tuple[int, int]]:
  """(update, how many from it on are one call), from `first` to the last.

  What a call's length does not divide, at the end or after a change of it, is
  done one by one.
  """
  step, length = first, stage.updates_per_call
  while step < clock.last:
    count = length if step % length == 0 and step + length <= clock.last else 1
    yield step, count
    step += count


def _work(stage: Stage | Pairs, round_: Round) -> Work:
  """Of a whole round: the images that it takes from the data, or its time."""
  if round_.seconds or isinstance(stage, Pairs):
    return Work(0, round_.seconds)
  return Work(stage.batch_size * round_.num_updates)


def _rest(stage: Stage, round_: Round, clock: Clock, done: int) -> Work:
  """Of a round after so many updates."""
  if round_.seconds:
    return Work(0, clock.left(done))
  return Work(stage.batch_size * (round_.num_updates - done))


def _sum(works: Sequence[Work]) -> Work:
  return Work(sum(w.images for w in works), sum(w.seconds for w in works))
