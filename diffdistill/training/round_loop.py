"""One round: the loop of its updates, from where it was left to its end."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.objectives.objective import Now, product_tree, turn_of
from diffdistill.system import hosts, signals
from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence
from diffdistill.training.clock import Clock
from diffdistill.training.functions import StageFunctions
from diffdistill.training.inputs import Inputs
from diffdistill.training.non_finite import check_metrics, check_product
from diffdistill.training.optimizers import EMA
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
from diffdistill.training.stage import SECOND_MOMENTS, Round, Stage
from diffdistill.training.state import in_dtype, product_of
from diffdistill.training.step import Update
from diffdistill.training.watchdog import Watchdog

# (stage, round, its product so far, updates done)
Observe = Callable[[Stage, Round, Params, int], None]
# (stage, round, its product so far, images to measure on) -> the lower the
# better
Distance = Callable[[Stage, Round, Params, int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
  """What all rounds of a run share; the fields are those of `Trainer`."""

  workdir: epath.Path
  seed: int
  layout: Layout
  cadence: Cadence
  observe: Observe
  distance: Distance
  preemption: Preemption
  watchdog: Watchdog
  now: Callable[[], float]
  inputs: Inputs
  pair_rounds: PairRounds
  report: Report

  def on_device(self, tree: Any) -> Any:
    """A tree of scalars on every device."""
    return hosts.place(tree, replicated(self.layout.mesh))


class RoundLoop:
  """The loop of one round.

  `run` repeats the law, each of its steps a method: evaluate the old state,
  save it, look at the clock, fetch the batches, update, count and report.

  Args:
    shared: of the run.
    stage, round_: what is trained.
    functions: of the stage.
    frozen: the trees that the round is given; those that are needed only to
      begin are removed from it, and then nothing else should hold them.
    checkpoints: of the round.
    later: the work of the rounds after it.
    begun: when its preparations began, by time.monotonic.
  """

  def __init__(
    self,
    shared: Shared,
    stage: Stage,
    round_: Round,
    functions: StageFunctions,
    frozen: dict[str, Params],
    checkpoints: Checkpoints,
    later: Work,
    begun: float,
  ):
    self._shared = shared
    self._stage = stage
    self._round = round_
    self._functions = functions
    self._frozen = frozen
    self._checkpoints = checkpoints
    self._later = later
    self._mesh = shared.layout.mesh
    self._passes = round_passes(stage.objective, round_)
    self._called: set[Update] = set()
    self._key = shared.on_device(
      jax.random.fold_in(jax.random.key(shared.seed), round_.code)
    )
    compiling = self._begin()
    self._first = int(self._state.step)
    shared.report.start_round(round_.name, self._first)
    self._data = shared.inputs.data(stage, round_, shared.report.say)
    self._clock = Clock(
      self._dir,
      round_.seconds,
      round_.num_updates,
      stage.updates_per_call,
      shared.now,
    )
    begun += self._remade_pairs()
    self._batches = self._data.iterate(self._first)
    self._selector = self._make_selector()
    self._meter = Meter(stage.batch_size, begun)
    self._meter.compiled(compiling)

  @property
  def _dir(self) -> epath.Path:
    return self._shared.workdir / self._round.name

  def run(self) -> None:
    """Trains to the end of the round, and keeps its products.

    Raises:
      PreemptedError: where it was asked to leave; what is done is saved.
      TrainingStoppedError: where updates stay non-finite.
    """
    for step, count in self._calls():
      # This order is law.
      if step > self._first and self._evaluate(step):
        break
      self._save(step)
      self._clock.look(
        step, functools.partial(jax.block_until_ready, self._state.step)
      )
      rows = [next(self._batches) for _ in range(count)]
      self._update(step, rows)
      self._report(step + count)
    self._finish()

  def _begin(self) -> float:
    """The state to go on from; returns the seconds that compiling took."""
    report, seconds = self._shared.report, 0.0
    state = self._checkpoints.restore(self._functions.abstract)
    if state is None:
      start = time.monotonic()
      state = self._functions.init(self._key, self._frozen)
      jax.block_until_ready(state)
      seconds = time.monotonic() - start
    else:
      report.say(f"{self._round.name}: goes on from update {int(state.step)}")
    self._state = state
    objective, dtype = self._stage.objective, self._stage.teacher_dtype
    for name in set(objective.starts) - set(objective.needs):
      self._frozen.pop(name, None)
    if dtype != "float32":
      shardings = tree_shardings(self._frozen["teacher"], self._shared.layout)
      cast = jax.jit(in_dtype, static_argnums=1, out_shardings=shardings)
      self._frozen["teacher"] = cast(self._frozen["teacher"], dtype)
    return seconds

  def _remade_pairs(self) -> float:
    """Makes pairs that were left behind; returns the seconds that it took."""
    if not (self._round.seconds and isinstance(self._data, PairPipeline)):
      return 0.0
    shards = self._data.shards(self._first, self._clock.last)
    return self._shared.pair_rounds.make_again(
      self._stage.pairs, self._data.store, shards, self._shared.report
    )

  def _calls(self) -> Iterator[tuple[int, int]]:
    """(update, how many from it on are one call), to the last.

    Updates that a call's length does not divide, at the end or after a change
    of it, are done one by one.
    """
    step, length = self._first, self._stage.updates_per_call
    while step < self._clock.last:
      whole = step % length == 0 and step + length <= self._clock.last
      count = length if whole else 1
      yield step, count
      step += count

  def _evaluate(self, step: int) -> bool:
    """Shows and scores the old state where due; whether the round ends."""
    shown = _due(self._shared.cadence.observe, step)
    selector = self._selector
    scored = selector is not None and selector.due(step)
    if not (shown or scored):
      return False
    jax.block_until_ready(self._state.step)
    begun = self._shared.now()
    if shown:
      self._shared.watchdog.patience()
      self._show(product_of(self._stage.objective, self._state))
    if scored:
      self._score()
    self._clock.skip(self._shared.now() - begun)
    if selector is None or not (scored and selector.exhausted(step)):
      return False
    name = self._round.name
    self._shared.report.say(f"{name}: ends at update {step}, past its best")
    return True

  def _save(self, step: int) -> None:
    """Saves where due, and leaves where asked to."""
    leave = self._shared.preemption.agreed(self._mesh)
    due = _due(self._shared.cadence.checkpoint, step)
    if step > self._first and (leave or due):
      with signals.writing():
        self._checkpoints.save(self._state, step)
    if not leave:
      return
    # Since the last record only the time counts: the updates are done again.
    values, _, seconds = self._meter.read()
    spent = {k: v for k, v in values.items() if k == "compile_seconds"}
    name = self._round.name
    self._shared.report.write(name, step, {**spent, "seconds": seconds})
    raise PreemptedError(
      f"asked to leave {name} after update {step}; the same command goes on"
      " from there"
    )

  def _update(self, step: int, rows: list[Any]) -> None:
    """Updates once for each batch."""
    count, watchdog = len(rows), self._shared.watchdog
    now, rates = self._scalars(step, count)
    if count == 1:
      turn = turn_of(self._stage.objective, step)
      call, batch = (
        self._functions.updates[turn],
        shard_batch(rows[0], self._mesh),
      )
    else:
      call, batch = self._functions.several, shard_batches(rows, self._mesh)
    placed = self._shared.on_device((now, rates))
    new, called_at = call not in self._called, time.monotonic()
    if new:
      # It compiles first, however long others have been at work.
      watchdog.patience()
      self._called.add(call)
    with jax.transfer_guard("disallow"):
      self._state, metrics = call(
        self._state, self._frozen, batch, self._key, *placed
      )
      self._meter.add(metrics, count)
      watchdog.dispatched(jax.tree.leaves(metrics)[0])
    if new:
      jax.block_until_ready(self._state.step)
      self._meter.compiled(time.monotonic() - called_at)
      self._clock.start(step + count)

  def _scalars(self, step: int, count: int) -> tuple[Now, dict[str, Any]]:
    """Where the round is and its learning rates, a row for each update."""
    steps, clock = range(step, step + count), self._clock

    def row(values: Any, dtype: Any) -> Any:
      return np.array(np.broadcast_to(values, (count,)), dtype)

    now = Now(
      num_steps=row(self._round.num_steps, np.int32),
      guided=row(self._round.guided, np.float32),
      step=row(steps, np.int32),
      progress=row([clock.progress(i) for i in steps], np.float32),
    )
    rates = {
      name: row(
        [optimizer.rate(i, clock.last, clock.held) for i in steps], np.float32
      )
      for name, optimizer in self._stage.all_optimizers.items()
    }
    if count > 1:
      return now, rates
    return jax.tree.map(lambda row: row[0], (now, rates))

  def _report(self, done: int) -> None:
    """Counts and writes a record where due."""
    # Log where the next score may stop the round, too.
    may_be_last = done == self._clock.last or (
      self._selector is not None and self._selector.exhausted(done)
    )
    if not (_due(self._shared.cadence.log, done) or may_be_last):
      return
    stage, name, report = self._stage, self._round.name, self._shared.report
    rates = {
      name: optimizer.rate(done - 1, self._clock.last, self._clock.held)
      for name, optimizer in stage.all_optimizers.items()
    }
    values, speed, seconds = self._meter.read()
    check_metrics(self._round, done, values, self._shared.cadence.max_skipped)
    values |= {
      "learning_rate": rates[product_tree(stage.objective)],
      **{f"{n}/learning_rate": rates[n] for n in stage.optimizers},
      "images": done * stage.batch_size,
      "passes": self._passes(done) * stage.batch_size,
      "images_per_second": round(speed, 1),
      "seconds": seconds,
    }
    report.write(name, done, values)
    if self._round.seconds:
      rest = Work(0, self._clock.left(done))
    else:
      rest = Work(stage.batch_size * (self._round.num_updates - done))
    todo = Work(
      self._later.images + rest.images, self._later.seconds + rest.seconds
    )
    report.progress(name, done, self._clock.length, speed, todo)

  def _finish(self) -> None:
    """Keeps what the round made, and shows it."""
    self._shared.watchdog.patience()
    check_product(self._round, self._state)
    if self._selector and int(self._state.step) == self._clock.last:
      self._score()
    products = self._products()
    self._checkpoints.check_place()
    # Saved before it is shown: a picture that fails loses no work.
    with signals.writing():
      checkpoint.save_final(self._dir, products)
    self._show(products[product_tree(self._stage.objective)])

  def _products(self) -> dict[str, Params]:
    """What a finished round keeps, by name: its trees, the product's average.

    Where weights were selected, those at the end are kept as `last_<name>`.
    """
    stage, state = self._stage, self._state
    name = product_tree(stage.objective)
    products = {**state.params, name: product_of(stage.objective, state)}
    for average, tree in state.averages[name].items():
      if average.startswith(f"{EMA}_"):
        products[f"{name}_{average}"] = tree
    best = self._selector.best() if self._selector else None
    if best is not None:
      products |= {name: best, f"last_{name}": products[name]}
    if name == "teacher":
      products[SECOND_MOMENTS] = stage.optimizer_of(name).second_moments(
        state.opt_state[name]
      )
    return products

  def _show(self, product: Params) -> None:
    step = int(self._state.step)
    self._shared.observe(self._stage, self._round, product, step)

  def _make_selector(self) -> Selector | None:
    """Keeps the round's best weights, where its stage selects."""
    select = self._stage.select
    if select is None:
      return None
    scores = {
      "held_out_loss": self._held_out_loss,
      "distance": lambda product: self._shared.distance(
        self._stage, self._round, product, select.num_images
      ),
    }
    score = scores[select.by]
    return Selector(select, self._dir, score, self._shared.layout)

  def _held_out_loss(self, product: Params) -> float:
    """The mean loss of a product on the pairs that are held out."""
    assert isinstance(self._data, PairPipeline)  # the stage has seen to it
    name = product_tree(self._stage.objective)
    now, _ = self._scalars(0, 1)
    now, key = self._shared.on_device((now, jax.random.key(self._shared.seed)))
    totals = [
      jax.device_get(
        self._functions.evaluate(
          {**self._frozen, name: product},
          shard_batch(rows, self._mesh),
          key,
          now,
        )[f"{name}/loss"]
      )
      for rows in self._data.held_out()
    ]
    return float(sum(t for t, _ in totals) / sum(n for _, n in totals))

  def _score(self) -> None:
    """Scores the product so far, keeps it if it is the best, and records it."""
    assert self._selector is not None
    assert self._stage.select is not None
    self._shared.watchdog.patience()
    step, start = int(self._state.step), time.monotonic()
    product = product_of(self._stage.objective, self._state)
    score = self._selector.consider(product, step)
    seconds = round(time.monotonic() - start, 3)
    took = {"score_seconds": seconds, "seconds": seconds}
    record = {self._stage.select.by: score, **took}
    self._shared.report.write(self._round.name, step, record)
    self._meter.skip(seconds)


def _due(every: int, step: int) -> bool:
  return bool(every) and step % every == 0
