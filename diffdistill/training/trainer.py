"""Trains a run: all rounds of all stages, in order. A new call resumes it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from etils import epath
from jax.sharding import Mesh

from diffdistill.arrays import Params
from diffdistill.data.pairs import PairStore
from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence, check_cadence
from diffdistill.training.curriculum import curriculum
from diffdistill.training.functions import StageFunctions, stage_functions
from diffdistill.training.inputs import Data, Inputs
from diffdistill.training.pair_rounds import PairRounds
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.preemption import Preemption
from diffdistill.training.report import Report, Work
from diffdistill.training.round_loop import RoundLoop
from diffdistill.training.running import Checkpoints
from diffdistill.training.sharding import Layout
from diffdistill.training.shared import Distance, Observe, Shared
from diffdistill.training.stage import Round, Stage
from diffdistill.training.training_stage import Training
from diffdistill.training.watchdog import Watchdog
from diffdistill.training.writers import NoWriter, Writer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
  """Trains all rounds of a run that are not finished.

  Args:
    stages: the recipe.
    workdir: the folder of the run.
    seed: the seed of all random numbers of the run.
    batches: returns batches of images for (batch size, seed, stage's name).
    pairs: opens the pairs on disk, for (stage, round, teacher's weights).
    outside: loads weights from outside the run, for (stage, name, source).
    layout: the mesh, and where parameters lie on it.
    cadence: how often to log, save and show samples.
    observe: shows samples of the weights of each round, at the cadence and at
      the end of the round.
    distance: returns the score of weights, for stages that select their weights
      by a distance.
    begins: is called before a stage trains; it may raise an error to prevent
      it.
    ends: is called after each round that a stage trained.
    preemption: says when to save and end; by default never.
    watchdog: ends a run that hangs; by default a run that hangs is not ended.
    now: returns the seconds of the clock that ends rounds, as time.monotonic
      does.
    writer: opens one more writer of the numbers of the run.
    began: the time.monotonic at which the command began; by default the call of
      `run`.
  """

  stages: tuple[Stage, ...]
  workdir: epath.Path
  seed: int
  batches: Callable[[int, int, str], Data]
  pairs: Callable[[Pairs, Round, Params], PairStore]
  outside: Callable[[Stage, str, str], Params]
  layout: Layout
  cadence: Cadence
  observe: Observe
  distance: Distance
  begins: Callable[[Training], None] = lambda stage: None
  ends: Callable[[Training], None] = lambda stage: None
  preemption: Preemption = dataclasses.field(default_factory=Preemption)
  watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)
  now: Callable[[], float] = time.monotonic
  writer: Callable[[], Writer] = NoWriter
  began: float | None = None

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
    """Trains every round that is not finished, in order.

    Raises:
      TrainingStoppedError: if gradients stay non-finite.
      PreemptedError: if the run was asked to end; its work is saved.
    """
    rounds = curriculum(self.stages)
    works = [_work(stage, round_) for stage, round_ in rounds]
    total = _sum(works)
    with Report(self.workdir, total, self.writer, self.began) as report:
      self._run(rounds, works, report)

  def _run(
    self,
    rounds: Sequence[tuple[Stage, Round]],
    works: Sequence[Work],
    report: Report,
  ) -> None:
    compiled: dict[str, StageFunctions] = {}
    for i, (stage, round_) in enumerate(rounds):
      self.watchdog.patience()
      round_dir = self.workdir / round_.name
      if not checkpoint.is_done(round_dir, self.layout):
        later = _sum(works[i + 1 :])
        stage.by_kind(
          train=functools.partial(self._train, round_, report, compiled, later),
          take=functools.partial(self._take, round_, report),
          make=functools.partial(self._make, round_, report),
        )
      # Do this for finished rounds too: an earlier process may have died after
      # it finished a round and just before this line.
      checkpoint.discard(round_dir)

  def compile(
    self, stage: Training, frozen: Mapping[str, Params], report: Report
  ) -> StageFunctions:
    """Makes a stage's functions; reports how many parameters they train."""
    functions = stage_functions(stage, frozen, self.layout)
    for name, tree in functions.abstract.params.items():
      count = sum(leaf.size for leaf in jax.tree.leaves(tree))
      report.say(f"{stage.name}: {count:,} parameters in the {name}")
    return functions

  def _train(
    self,
    round_: Round,
    report: Report,
    compiled: dict[str, StageFunctions],
    later: Work,
    stage: Training,
  ) -> None:
    """Trains a round; keeps the compiled functions for the next rounds."""
    begun = time.monotonic()
    frozen = self._inputs.frozen(stage, round_)
    if stage.name not in compiled:
      self.begins(stage)
      compiled[stage.name] = self.compile(stage, frozen, report)
    round_dir = self.workdir / round_.name
    keep = self.cadence.keep
    with Checkpoints(round_dir, keep, report.flush) as checkpoints:
      RoundLoop(
        self._shared(report),
        stage,
        round_,
        compiled[stage.name],
        frozen,
        checkpoints,
        later,
        begun,
      ).run()
    self.watchdog.patience()
    self.ends(stage)

  def _shared(self, report: Report) -> Shared:
    return Shared(
      workdir=self.workdir,
      seed=self.seed,
      layout=self.layout,
      cadence=self.cadence,
      observe=self.observe,
      distance=self.distance,
      preemption=self.preemption,
      watchdog=self.watchdog,
      now=self.now,
      inputs=self._inputs,
      pair_rounds=self._pair_rounds,
      report=report,
    )

  def _make(self, round_: Round, report: Report, stage: Pairs) -> None:
    """Makes a round of pairs."""
    teacher = self._inputs.frozen(stage, round_)["teacher"]
    self._pair_rounds.make(stage, round_, teacher, report)
    # A later update is not the first work of this command.
    report.first_update()

  def _take(self, round_: Round, report: Report, stage: Training) -> None:
    """Saves the weights of a stage that takes them from outside the run."""
    name = stage.product
    product = self.outside(stage, name, stage.source)
    report.say(f"{round_.name}: {stage.source}")
    checkpoint.save_final(self.workdir / round_.name, {name: product})
    self.observe(stage, round_, product, 0)


def check_batches(stages: Sequence[Stage], mesh: Mesh) -> None:
  """Refuses a batch that cannot be divided equally among the devices.

  Raises:
    ValueError: if the devices cannot share a batch equally.
  """
  for stage in stages:
    rows = mesh.size * stage.group
    if stage.batch_size % rows:
      of = f" times groups of {stage.group}" if stage.group > 1 else ""
      raise ValueError(
        f"stages.{stage.name}.batch_size is {stage.batch_size}, which the"
        f" {mesh.size} devices{of} do not divide; pass a multiple of {rows}"
      )


def _work(stage: Stage, round_: Round) -> Work:
  """Returns the work of a whole round: its images, or its seconds."""
  if round_.seconds:
    return Work(0, round_.seconds)
  return Work(stage.batch_size * round_.num_updates)


def _sum(works: Sequence[Work]) -> Work:
  return Work(sum(w.images for w in works), sum(w.seconds for w in works))
