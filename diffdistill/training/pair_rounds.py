"""Makes the rounds of pairs of noise and image, and missing pairs again."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

from etils import epath
from jax.sharding import Mesh

from diffdistill.arrays import Params
from diffdistill.data.pair_arrays import Drawn
from diffdistill.data.pairs import PairStore, Say
from diffdistill.training import checkpoint
from diffdistill.training.clock import SHARDS, fitting_shards, recorded
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.passes import pair_passes
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.report import Report
from diffdistill.training.stage import Round
from diffdistill.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRounds:
  """The rounds of pairs of a run.

  Args:
    workdir: the folder of the run.
    pairs: returns the pair store of (stage, round, teacher's weights).
    mesh: the mesh of all processes.
    preemption: says when the run must save and end.
    watchdog: ends a run that hangs.
    now: returns the seconds of the clock that ends rounds, as time.monotonic
      does.
  """

  workdir: epath.Path
  pairs: Callable[[Pairs, Round, Params], PairStore]
  mesh: Mesh
  preemption: Preemption
  watchdog: Watchdog
  now: Callable[[], float]

  def store(self, stage: Pairs, round_: Round, teacher: Params) -> PairStore:
    """Opens the pairs of a stage on disk.

    The store of pairs tells the watchdog of each draw, so that the run does not
    count as hung.

    If the clock ends the stage, the store has the recorded number of shards.
    While none is recorded, it has as many as possible.
    """
    store = self.pairs(stage, round_, teacher)
    known = recorded(self.workdir / round_.name, SHARDS) if stage.minutes else 0

    def draw(first: int, count: int) -> Drawn:
      self.watchdog.patience()
      drawn = store.draw(first, count)
      self.watchdog.alive()
      return drawn

    return dataclasses.replace(store, draw=draw, num_shards=known or 0)

  def make(
    self, stage: Pairs, round_: Round, teacher: Params, report: Report
  ) -> None:
    """Makes the pairs that are missing and that fit on the disk.

    Raises:
      PreemptedError: if the run was asked to leave; complete shards are kept.
    """
    store = self.store(stage, round_, teacher)
    report.say(f"{stage.name}: {store.summary()}")
    report.start_round(round_.name, 0)
    store.claim()

    def fill(say: Say) -> None:
      nonlocal store
      if stage.minutes and not store.num_shards:
        round_dir = self.workdir / round_.name
        shards = fitting_shards(store, round_dir, round_.seconds, say, self.now)
        store = dataclasses.replace(store, num_shards=shards)
      store.fill(say)

    took = self._while_made(round_.name, store, fill, report)
    passes = pair_passes(stage, round_, store.num_pairs)
    values = {"passes": passes, **took}
    report.write(round_.name, store.num_pairs + stage.held_out, values)
    report.flush()
    checkpoint.mark_final(self.workdir / round_.name, str(store.directory))

  def make_again(
    self, name: str, store: PairStore, shards: Sequence[int], report: Report
  ) -> float:
    """Makes missing pairs of a finished round, before a student's clock starts.

    Pairs are missing if the run was moved to another machine without them.

    Args:
      name: the name of the finished round of pairs.
      store: the store of its pairs.
      shards: the shards that training will read next.
      report: writes the reports of the run.

    Returns:
      The seconds that it took. They count as time of the pairs, not of the
      student.

    Raises:
      PreemptedError: if the run was asked to leave; complete shards are kept.
    """
    store.claim()
    missing = store.missing([*shards, *store.pairs.held_out_shards])
    if not missing:
      return 0.0
    make = functools.partial(store.make, missing)
    took = self._while_made(name, store, make, report, again=True)
    report.write(name, 0, took)
    return took["seconds"]

  def _while_made(
    self,
    name: str,
    store: PairStore,
    make: Callable[[Say], object],
    report: Report,
    again: bool = False,
  ) -> dict[str, float]:
    """Calls `make`, and returns the seconds it took, by name.

    Args:
      name: the name of the round.
      store: the store, which this process has claimed.
      make: makes the shards, and calls its argument after each shard.
      report: writes the reports of the run.
      again: whether the pairs are made again.

    Raises:
      PreemptedError: if the run was asked to leave; complete shards are kept.
    """
    start, compiling = time.monotonic(), 0.0

    def so_far() -> dict[str, float]:
      seconds = time.monotonic() - start
      took = {"compile_seconds": compiling, "seconds": seconds}
      if again:
        took["again_seconds"] = seconds - compiling
      return {name: round(value, 3) for name, value in took.items()}

    def made(line: str) -> None:
      report.say(line)
      # No update is running here, so the processes can wait for each other.
      if self.preemption.agreed(self.mesh, lag=0):
        # Record this at step 0, because a resumed round removes the records of
        # later steps.
        report.write(name, 0, so_far())
        raise PreemptedError(
          f"asked to leave {name} after a shard; the same command goes on from"
          " there"
        )

    if store.missing(store.first_shards):
      # Draw pairs once, so that all functions are compiled, and do not keep the
      # pairs.
      store.draw(0, store.draw_size or 1)
      compiling = time.monotonic() - start
    make(made)
    return so_far()
