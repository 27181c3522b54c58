"""The pairs of noise and image that the teacher of a stage makes."""

import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.data.pair_set import PairSet
from diffdistill.data.pairs import PairStore
from diffdistill.images import to_host
from diffdistill.run.experiment import Experiment
from diffdistill.training.fingerprint import fingerprint
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.stage import Round


def pair_store(
  run: Experiment,
  workdir: epath.Path,
  stage: Pairs,
  round_: Round,
  teacher: Params,
) -> PairStore:
  """The pairs of a stage on disk, and how its teacher makes them.

  Args:
    run: the run of the stage.
    workdir: the workdir of the run.
    stage, round_: the stage and round that make the pairs.
    teacher: the weights of the teacher.
  """
  guidance = stage.guidance if round_.guided else None
  generator = run.generator(
    stage.sampler, stage.batch_size, guidance=guidance, half=True
  )
  # The run's own seed makes the noise of evaluations, so use another one here.
  seed = run.seed ^ round_.code

  def noise(first: int, count: int) -> np.ndarray:
    parts = [
      to_host(generator.noise(seed, start))
      for start in range(first, first + count, generator.batch_size)
    ]
    return np.concatenate(parts)[:count].astype(np.float32)

  def draw(
    first: int, count: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    batches = generator.batches(teacher, seed, count, stage.num_steps, first)
    images = np.concatenate([to_host(batch) for batch in batches])
    labels = generator.labels_of(first, count)
    return noise(first, count), images, labels

  return PairStore(
    directory=(
      epath.Path(stage.path) if stage.path else workdir / stage.name / "pairs"
    ),
    pairs=_pair_set(run, stage, seed, fingerprint(teacher)),
    max_gigabytes=stage.max_gigabytes,
    draw=draw,
    draw_size=generator.batch_size,
    noise=noise,
  )


def check_disk(run: Experiment, stage: Pairs) -> None:
  """Refuses a disk budget that is smaller than one shard of pairs.

  Raises:
    ValueError: if the budget is too small.
  """
  _pair_set(run, stage, 0, "").capacity(stage.max_gigabytes)


def _pair_set(
  run: Experiment, stage: Pairs, seed: int, teacher: str
) -> PairSet:
  return PairSet(
    teacher=teacher,
    sampler=f"{stage.sampler} {stage.guidance}",
    num_steps=stage.num_steps,
    seed=seed,
    image_shape=run.source.image_shape,
    num_classes=run.num_classes,
    labels=run.label_rule,
    num_pairs=stage.num_pairs,
    held_out=stage.held_out,
    shard_size=stage.shard_size,
    store_noise=stage.store_noise,
  )
