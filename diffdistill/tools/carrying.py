"""A workdir made small, to go on with elsewhere.

It holds what is recorded of a run and the weights that its rest asks for: those
that rounds still to be made take, those that are not judged yet, and the judge.
Of what else is finished it says that it is done and left behind. Pairs are left
behind too: their teacher makes them again, on such a device the same.
"""

import fnmatch
import shutil
from collections.abc import Collection

from etils import epath

from diffdistill.judging.comparison import unjudged
from diffdistill.judging.contestants import contestants
from diffdistill.judging.judge import identity_of
from diffdistill.judging.judged_rows import FOLDER, judged_rows
from diffdistill.run.experiment import Experiment
from diffdistill.system.files import matching, whole_folder
from diffdistill.system.lock import Say, idle
from diffdistill.training import checkpoint
from diffdistill.training.clock import FILE as CLOCK
from diffdistill.training.stage import SECOND_MOMENTS

RECORDS = (
  "environment.json",
  "metrics.jsonl",
  "benchmark*.json",
  "data.json",
  "config.json",
)


def carry(
  run: Experiment, workdir: epath.Path, out: epath.Path, say: Say
) -> None:
  """Writes the small workdir, with its config last.

  Args:
    run: the recipe.
    workdir: where it is trained; nothing in it changes.
    out: a folder that is not there yet.
    say: is told of a wait for another process.

  Raises:
    ValueError: where weights that the rest asks for were left behind before,
      or a training is at work in the workdir.
  """
  with whole_folder(out) as new, idle(workdir, say):
    wanted = _wanted(run, workdir)
    for name in run.rounds:
      if (workdir / name).exists():
        _round(run, workdir / name, new / name, wanted.get(name, set()))
    # The data's own statistics are soon made again.
    _copy(workdir / FOLDER, new / FOLDER, "*reference.*")
    _copy(workdir / "samples", new / "samples")
    for pattern in RECORDS:
      for path in matching(workdir, pattern):
        _copy(path, new / path.name)


def _wanted(run: Experiment, workdir: epath.Path) -> dict[str, set[str]]:
  """The products, by finished round, that the rest of a run asks for."""
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
  """The finished models that are not judged as the config says."""
  try:
    models = contestants(run, workdir, lambda line: None)
    kept = judged_rows(run, workdir, identity_of(run, workdir))
  except ValueError:
    # None can be judged yet.
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
  """What of one round is carried: these products, if it is finished."""
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
  """A file or a folder, where there is one, but for files of such names."""
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
      # A full disk is said of the file that is read, the other comes second.
      place = error.filename2 or error.filename or str(new)
      raise OSError(error.errno, error.strerror, place) from error
