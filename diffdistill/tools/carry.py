"""The command that copies what the rest of a run needs to a new folder.

The new folder holds the records of the run and three kinds of weights: those
that later rounds start from, those of models that are not judged yet, and the
judge. The new folder marks every other finished round as done, without its
weights. Pairs are not copied either: the teacher makes the same pairs again.
"""

import fnmatch
import shutil
from collections.abc import Collection
from pathlib import Path

from etils import epath

from diffdistill.judging.comparison import unjudged
from diffdistill.judging.contestants import contestants
from diffdistill.judging.judge import identity_of
from diffdistill.judging.judged_rows import FOLDER, judged_rows
from diffdistill.run import from_config
from diffdistill.run.experiment import Experiment
from diffdistill.run.kept_names import check_out
from diffdistill.system.files import in_bucket, matching, whole_folder
from diffdistill.system.lock import idle
from diffdistill.tools.speaking import answer, say
from diffdistill.training import checkpoint
from diffdistill.training.clock import FILE as CLOCK
from diffdistill.training.stage import SECOND_MOMENTS

RECORDS = (
  "environment.json",
  "metrics.jsonl",
  "wandb.json",
  "benchmark*.json",
  "data.json",
  "redone.json",
  "config.json",
)


def carry(workdir: epath.Path, out: epath.Path) -> None:
  """Copies what the rest of a run needs, and leaves the workdir unchanged.

  Args:
    workdir: the folder of the run.
    out: a folder that does not exist yet.

  Raises:
    ValueError: if `out` exists or is a folder of the run, a folder is in a
      bucket, a training runs in the workdir, or an earlier `carry` left needed
      weights behind.
  """
  for place in (workdir, out):
    if in_bucket(place):
      raise ValueError(
        f"{place} is in a bucket, which other machines reach as it is; pass"
        " folders of a disk"
      )
  run = from_config.reopen(workdir)
  if out.exists():
    raise ValueError(f"out is {out}, which is there already; pass a new folder")
  check_out(out, [workdir], run.config["stages"], folder=True)
  with whole_folder(out) as new, idle(workdir, say):
    wanted = _wanted(run, workdir)
    for name in run.rounds:
      if (workdir / name).exists():
        _round(run, workdir / name, new / name, wanted.get(name, set()))
    # Leave out the statistics of the data, which are quick to compute again.
    _copy(workdir / FOLDER, new / FOLDER, "*reference.*")
    _copy(workdir / "samples", new / "samples")
    # Copy the config last: a folder with a config counts as a run.
    for pattern in RECORDS:
      for path in matching(workdir, pattern):
        _copy(path, new / path.name)
  files = (path for path in Path(out).rglob("*") if path.is_file())
  size = sum(path.stat().st_size for path in files)
  answer(f"{size / 1e6:.1f} MB to go on with elsewhere: {out}")


def _wanted(run: Experiment, workdir: epath.Path) -> dict[str, set[str]]:
  """Returns the names of the weights still needed of each finished round."""
  result: dict[str, set[str]] = {}

  def want(source: str, product: str | None = None) -> None:
    stage, _ = run.rounds[source]
    if checkpoint.has_final(workdir / source):
      result.setdefault(source, set()).add(product or stage.product)

  for name, (stage, round_) in run.rounds.items():
    if checkpoint.has_final(workdir / name):
      continue
    for what, source in round_.frozen.items():
      if source in run.rounds:
        want(source, SECOND_MOMENTS if what == SECOND_MOMENTS else None)
    if stage.pairs:
      _, made = run.rounds[stage.pairs]
      want(made.frozen["teacher"])
  judge = run.judging_stage
  if judge is not None:
    want(judge.name)
  for model in _unjudged(run, workdir):
    name, _, last = model.partition(" ")
    stage, _ = run.rounds[name]
    want(name, f"last_{stage.product}" if last else None)
  return result


def _unjudged(run: Experiment, workdir: epath.Path) -> list[str]:
  """The finished models that the config's evaluation has not judged yet."""
  try:
    models = contestants(run, workdir, lambda line: None)
    kept = judged_rows(run, workdir, identity_of(run, workdir))
  except ValueError:
    # Nothing can be judged yet, so every model is unjudged.
    return [
      f"{name} last" if product.startswith("last_") else name
      for name in run.models
      if checkpoint.has_final(workdir / name)
      for product in checkpoint.products_of(workdir / name)[0]
    ]
  return unjudged(models, kept)


def _round(
  run: Experiment, old: epath.Path, new: epath.Path, products: Collection[str]
) -> None:
  """Copies a finished round's weights, or an unfinished round's checkpoints.

  Args:
    run: the recipe.
    old: the folder of the round.
    new: the new folder of the round.
    products: the names of the weights to copy if the round is finished.
  """
  _copy(old / CLOCK, new / CLOCK)
  if not checkpoint.has_final(old):
    for path in checkpoint.to_go_on_from(old):
      _copy(path, new / path.relative_to(old))
    return
  here, left = checkpoint.products_of(old)
  behind = (here | left) - set(products)
  if products:
    trees = {
      product: checkpoint.load_final(old, product, run.layout)
      for product in sorted(products)
    }
    checkpoint.save_final(new, trees, behind)
  else:
    words = "done; its weights are where it was trained"
    checkpoint.mark_final(new, words, behind)


def _copy(old: epath.Path, new: epath.Path, *without: str) -> None:
  """Copies a file or folder if it exists; skips names that match `without`."""
  if old.is_dir():
    new.mkdir(parents=True, exist_ok=True)
    for path in old.iterdir():
      if not any(fnmatch.fnmatchcase(path.name, each) for each in without):
        _copy(path, new / path.name, *without)
  elif old.exists():
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
      shutil.copy(old, new)
    except OSError as error:
      # If the disk is full, the message must name the file that is written.
      place = error.filename2 or error.filename or str(new)
      raise OSError(error.errno, error.strerror, place) from error
