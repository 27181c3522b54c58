"""The stage that makes pairs of noise and the teacher's image."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from etils import epath

from diffdistill.diffusion.guidance import Guidance
from diffdistill.ranges import Range, Steps
from diffdistill.sampling.sampler import Sampler
from diffdistill.training.clock import SHARDS, recorded
from diffdistill.training.stage import Round, Stage, T


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Stage):
  """A stage that writes noise and the teacher's images, for students.

  Its one round has the name of the stage. Its `batch_size` is the number of
  pairs that are made at a time. With `minutes`, it makes as many shards as fit
  into that time, but at least one.

  Args:
    sampler: the sampler of the teacher.
    num_steps: the number of the sampler's steps.
    guidance: the guidance weight of the teacher.
    num_pairs: how many different pairs to train on.
    held_out: how many more pairs are made and not trained on, for held-out
      losses.
    shard_size: pairs in one file; a killed run makes at most this many again.
    store_noise: if False, the noise is drawn from its key again whenever it is
      read, which saves two thirds of the disk space.
    max_gigabytes: the disk space that pairs may take; 0 for no limit. If all
      pairs take more, training uses a rolling pool that fits.
    path: the folder of the pairs; empty for one in the workdir.
  """

  sampler: Sampler
  num_steps: Steps
  num_pairs: Annotated[int, Range(1, 10**9)]
  held_out: Annotated[int, Range(0, 10**9)]
  shard_size: Annotated[int, Range(1, 10**7)]
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  store_noise: bool = True
  max_gigabytes: Annotated[float, Range(0, 10**6)] = 0.0
  path: str = ""
  frozen: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"teacher": "teacher"}
  )

  unit: ClassVar[Literal["updates", "pairs"]] = "pairs"

  def __post_init__(self):
    super().__post_init__()
    if self.minutes and self.max_gigabytes:
      raise ValueError(
        f"minutes is {self.minutes} and max_gigabytes {self.max_gigabytes}, but"
        " how many pairs there will be in a rolling pool must be known from the"
        " start; pass 0 for one of them"
      )
    if not self.sampler.deterministic:
      raise ValueError(
        f"sampler is {type(self.sampler).__name__}, which adds noise of its"
        " own; pairs need an image that is a function of its noise: pass ddim,"
        " dpm_solver, or heun with churn=0"
      )
    if self.num_pairs % self.shard_size:
      raise ValueError(
        f"num_pairs is {self.num_pairs}, which shard_size={self.shard_size}"
        " does not divide; pass a multiple of it"
      )
    if set(self.frozen) != {"teacher"}:
      raise ValueError(
        f"frozen names {sorted(self.frozen)}; pairs need exactly a teacher;"
        " pass that"
      )

  @property
  def makes(self) -> Literal["pairs"]:
    return "pairs"

  def rounds(
    self, frozen: Mapping[str, str], guided: bool
  ) -> tuple[Round, ...]:
    round_ = Round(
      name=self.name,
      stage=self.name,
      num_updates=0,
      num_steps=0,
      frozen=frozen,
      guided=guided,
      seconds=60 * self.minutes,
    )
    return (round_,)

  def most(self, round_: Round) -> int:
    return self.num_pairs + self.held_out

  def settled(self, round_dir: epath.Path) -> int | None:
    shards = recorded(round_dir, SHARDS)
    return shards and shards * self.shard_size + self.held_out

  @property
  def at_a_time(self) -> Mapping[str, int]:
    return {"batch_size": self.batch_size, "shard_size": self.shard_size}

  def by_kind(
    self,
    *,
    train: Callable[[Any], T],
    take: Callable[[Any], T],
    make: Callable[[Any], T],
  ) -> T:
    return make(self)


def pairs_stages(stages: Iterable[Stage]) -> dict[str, Pairs]:
  """Finds the stages that make pairs of noise and image, by name."""

  def keep(stage: Pairs) -> list[Pairs]:
    return [stage]

  def drop(stage: Stage) -> list[Pairs]:
    return []

  kept = (s.by_kind(train=drop, take=drop, make=keep) for s in stages)
  return {stage.name: stage for found in kept for stage in found}
