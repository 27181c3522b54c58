"""The loop of one round, from the newest checkpoint to the end."""

import functools
import time

import jax
from etils import epath

from diffdistill.arrays import Batch, Metrics, Params
from diffdistill.objectives.objective import turn_of
from diffdistill.system import signals
from diffdistill.training import checkpoint
from diffdistill.training.averaged_weights import product_of, products_of
from diffdistill.training.calls import calls, rates_at, scalars
from diffdistill.training.clock import Clock, length_in_words
from diffdistill.training.functions import StageFunctions
from diffdistill.training.inputs import Placed
from diffdistill.training.non_finite import check_metrics, check_product
from diffdistill.training.passes import round_passes
from diffdistill.training.preemption import PreemptedError
from diffdistill.training.report import WAITED, Meter, Work
from diffdistill.training.running import Checkpoints
from diffdistill.training.scores import distance_score, held_out_score
from diffdistill.training.selection_by_score import Selector
from diffdistill.training.sharding import tree_shardings
from diffdistill.training.shared import Shared
from diffdistill.training.stage import Round
from diffdistill.training.state import in_dtype
from diffdistill.training.step import Update
from diffdistill.training.training_stage import Training


class RoundLoop:
  """The loop of one round.

  `run` repeats the same steps in the same order, and each step is a method:
  evaluate the old state, save it, check the clock, take the batches, update,
  place the next batches, count and report.

  Args:
    shared: the objects that all rounds of the run share.
    stage, round_: the stage and the round that are trained.
    functions: the functions of the stage.
    frozen: the frozen trees of the round. The loop removes the trees that are
      needed only at the start; the caller should hold no other reference to
      them.
    checkpoints: the checkpoints of the round.
    later: the work of the rounds after this one.
    begun: the time.monotonic at which the preparations of the round began.
  """

  def __init__(
    self,
    shared: Shared,
    stage: Training,
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
    self._pairs = shared.inputs.pairs_of(stage, round_, shared.report.say)
    data = self._pairs or shared.inputs.images(stage, round_)
    self._clock = Clock(
      self._dir,
      round_.seconds,
      round_.num_updates,
      stage.updates_per_call,
      shared.now,
    )
    begun += self._make_missing_pairs()
    self._batches = Placed(data.iterate(self._first), self._mesh)
    self._selector = self._make_selector()
    self._meter = Meter(stage.batch_size, begun)
    self._meter.compiled(compiling)

  @property
  def _dir(self) -> epath.Path:
    return self._shared.workdir / self._round.name

  def run(self) -> None:
    """Trains to the end of the round, and saves the weights that it hands on.

    Raises:
      PreemptedError: if the run was asked to end; its work is saved.
      TrainingStoppedError: if the gradients stay non-finite.
    """
    for step, count in calls(self._stage, self._clock, self._first):
      # Do not change this order. The next batches are placed while the devices
      # compute, before this process waits for them.
      if step > self._first and self._evaluate(step):
        break
      self._save(step)
      self._check_clock(step)
      batch = self._batches.take(count)
      metrics, compiling_since = self._update(step, count, batch)
      if step + 2 * count <= self._clock.last:
        self._batches.place(count)
      self._count(step + count, count, metrics, compiling_since)
      self._report(step + count)
    self._finish()

  def _begin(self) -> float:
    """Restores or makes the state; returns the seconds that compiling took."""
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
    for name in objective.starts:
      self._frozen.pop(name, None)
    if dtype != "float32":
      shardings = tree_shardings(self._frozen["teacher"], self._shared.layout)
      cast = jax.jit(in_dtype, static_argnums=1, out_shardings=shardings)
      self._frozen["teacher"] = cast(self._frozen["teacher"], dtype)
    return seconds

  def _make_missing_pairs(self) -> float:
    """Makes pairs that this machine lacks; returns the seconds that it took."""
    if not (self._round.seconds and self._pairs):
      return 0.0
    shards = self._pairs.shards(self._first, self._clock.last)
    return self._shared.pair_rounds.make_again(
      self._stage.pairs, self._pairs.store, shards, self._shared.report
    )

  def _make_selector(self) -> Selector | None:
    """Makes the object that selects the best weights, or None."""
    shared, stage, select = self._shared, self._stage, self._stage.select
    if select is None:
      return None
    if select.by == "held_out_loss" and self._pairs:
      now, _ = scalars(stage, self._round, self._clock, 0, 1)
      score = held_out_score(
        shared, self._functions, self._pairs, self._frozen, stage.product, now
      )
    else:
      score = distance_score(shared, stage, self._round, select.num_images)
    return Selector(select, self._dir, score, shared.layout)

  def _evaluate(self, step: int) -> bool:
    """Shows and scores the state if due; True means to end the round."""
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
    """Saves the state if due; ends the run if it was asked to end."""
    leave = self._shared.preemption.agreed(self._mesh)
    due = _due(self._shared.cadence.checkpoint, step)
    if step > self._first and (leave or due):
      with signals.writing():
        self._checkpoints.save(self._state, step)
    if not leave:
      return
    # Write a record before leaving. The next process repeats these updates and
    # records their metrics, but the time spent on them here would be lost.
    values, _, seconds = self._meter.read()
    spent = {k: v for k, v in values.items() if k in WAITED}
    name = self._round.name
    self._shared.report.write(name, step, {**spent, "seconds": seconds})
    raise PreemptedError(
      f"asked to leave {name} after update {step}; the same command goes on"
      " from there"
    )

  def _check_clock(self, step: int) -> None:
    """Fixes the length of a round that ends by the clock, when that is due."""
    wait = functools.partial(jax.block_until_ready, self._state.step)
    length = self._clock.look(step, wait)
    if length is not None:
      enough = self._stage.enough_updates
      said = length_in_words(length, self._round.seconds, enough)
      self._shared.report.say(f"{self._round.name}: {said}")

  def _update(
    self, step: int, count: int, batch: Batch
  ) -> tuple[Metrics, float | None]:
    """Does `count` updates in one call.

    Returns the metrics, and the time at which a call that compiles began.
    """
    told = scalars(self._stage, self._round, self._clock, step, count)
    call = self._functions.several
    if count == 1:
      call = self._functions.updates[turn_of(self._stage.objective, step)]
    placed = self._shared.on_device(told)
    since = None
    if call not in self._called:
      self._shared.watchdog.patience()
      self._called.add(call)
      since = time.monotonic()
    with jax.transfer_guard("disallow"):
      self._state, metrics = call(
        self._state, self._frozen, batch, self._key, *placed
      )
    return metrics, since

  def _count(
    self,
    done: int,
    count: int,
    metrics: Metrics,
    compiling_since: float | None,
  ) -> None:
    """Counts a call's updates; if it compiled, its time is compiling time."""
    self._meter.add(metrics, count)
    self._shared.watchdog.dispatched(jax.tree.leaves(metrics)[0])
    if compiling_since is not None:
      jax.block_until_ready(self._state.step)
      first = self._shared.report.first_update()
      self._meter.compiled(time.monotonic() - compiling_since, first)
      self._clock.start(done)

  def _report(self, done: int) -> None:
    """Writes a record and the progress line, if they are due."""
    # The next score may end the round, so write a record before it too.
    may_be_last = done == self._clock.last or (
      self._selector is not None and self._selector.exhausted(done)
    )
    if not (_due(self._shared.cadence.log, done) or may_be_last):
      return
    stage, name, report = self._stage, self._round.name, self._shared.report
    rates = rates_at(stage, self._clock, done - 1)
    values, speed, seconds = self._meter.read()
    check_metrics(self._round, done, values, self._shared.cadence.max_skipped)
    values |= {
      "learning_rate": rates[stage.product],
      **{f"{n}/learning_rate": rates[n] for n in stage.optimizers},
      "images": done * stage.batch_size,
      "passes": self._passes(done) * stage.batch_size,
      "images_per_second": round(speed, 1),
      "seconds": seconds,
    }
    report.write(name, done, values)
    if self._round.seconds:
      rest = Work(0, self._clock.left(done, speed / stage.batch_size))
    else:
      rest = Work(stage.batch_size * (self._round.num_updates - done))
    todo = Work(
      self._later.images + rest.images, self._later.seconds + rest.seconds
    )
    report.progress(name, done, self._clock.length, speed, todo)

  def _finish(self) -> None:
    """Saves the weights that the round hands on, and shows samples of them."""
    self._shared.watchdog.patience()
    check_product(self._round, self._state)
    if self._selector and int(self._state.step) == self._clock.last:
      self._score()
    best = self._selector.best() if self._selector else None
    products = products_of(self._stage, self._state, best)
    self._checkpoints.prepare()
    # Save before showing, so that an error while drawing loses no work.
    with signals.writing():
      checkpoint.save_final(self._dir, products)
    self._show(products[self._stage.product])

  def _show(self, product: Params) -> None:
    step = int(self._state.step)
    self._shared.observe(self._stage, self._round, product, step)

  def _score(self) -> None:
    """Scores the current weights; keeps them if best; records the score."""
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
