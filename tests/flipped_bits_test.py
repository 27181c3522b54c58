"""Tests that a flipped bit in any file of a run is never used silently.

The reader of the file refuses it in one line that names it, or reports that the
file is skipped or made again, or gets the same result as without the flip.
"""

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
import random
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image as PillowImage

from diffdistill.reporting.gather import gather
from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.system import refusals
from diffdistill.system.refusals import line_of
from diffdistill.tools import evaluate, train
from diffdistill.training import checkpoint
from diffdistill.training.best import best_of, load_best
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.report import costs
from diffdistill.training.running import Checkpoints

COMPLAINT = re.compile(
  r"damaged|cannot be|skipped|missing|differs|no PNG|is sound|again|beside"
)
# Comparisons leave out these fields, because they depend on the clock.
TIMES = ("second", "speed", "share", "memory")
INTERRUPTED = "halve/001"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The result, the messages or the refusal of a reader of files.

  Args:
    result: the content that was read, to be compared.
    said: all logged or printed text.
    refusal: the line of a refusal, or "".
  """

  result: object = None
  said: str = ""
  refusal: str = ""


def outcome_of(read) -> Outcome:
  """Runs a reader and returns its outcome; raises unexpected errors."""
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  logging.getLogger("absl").addHandler(handler)
  result, refusal = None, ""
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      result = read()
  except Exception as error:
    if not refusals.is_refusal(error):
      raise
    refusal = line_of(error)
  finally:
    logging.getLogger("absl").removeHandler(handler)
  return Outcome(result=result, said=said.getvalue(), refusal=refusal)


def digest(tree):
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
  return hashlib.sha256(b"".join(leaves)).hexdigest()


def plain(value):
  """Removes the fields that depend on the clock from JSON values."""
  if isinstance(value, dict):
    return {
      k: plain(v) for k, v in value.items() if not any(t in k for t in TIMES)
    }
  return [plain(v) for v in value] if isinstance(value, list) else value


def config(workdir, _):
  run = from_config.reopen(workdir)
  run.source.check()
  return run.config, run.source.label_counts


def final(workdir, path):
  """Whether a training takes the round for finished, and its weights."""
  run = from_config.reopen(workdir)
  name = "/".join(path.parts[: path.parts.index("final")])
  done = checkpoint.is_done(workdir / name, run.layout)
  return done, {
    product: digest(checkpoint.load_final(workdir / name, product, run.layout))
    for product in sorted(checkpoint.product_names(workdir / name))
  }


def final_record(workdir, path):
  return final(workdir, path.parent / "final")


def pixels(picture):
  data = base64.b64decode(picture.data.partition(",")[2])
  with PillowImage.open(io.BytesIO(data)) as image:
    return picture.name, image.size, image.tobytes()


def page(workdir, _):
  """Reads the content of a report, but not the config, which `config` reads."""
  run = gather(workdir, "run")
  pictures = [pixels(p) for p in (run.compared, *run.sheets) if p]
  parts = (run.judged, pictures, run.rounds, run.notes)
  print(*run.notes, sep="\n")
  return costs(workdir, print), repr(parts)


def evaluation(workdir, _):
  evaluate.evaluate(workdir, None, None)
  written = json.loads((workdir / "evaluation.json").read_text())
  return plain(written["rows"])


def pairs(workdir, _):
  run = from_config.reopen(workdir)
  stage, round_ = run.rounds["pairs"]
  teacher = run.product(workdir, "teacher")
  store = pair_store(run, workdir, stage, round_, teacher)
  store.claim()
  return [digest(store.read(shard)) for shard in store.first_shards]


@pytest.fixture(scope="module")
def finished(judged_config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("finished")) / "run"
  train.train(judged_config, workdir)
  evaluate.evaluate(workdir, None, None)
  return workdir


@pytest.fixture(scope="module")
def interrupted(judged_config, tmp_path_factory):
  """Makes a run that was stopped in its last halving round.

  Gives (the run, the shapes of the state).
  """
  workdir = epath.Path(tmp_path_factory.mktemp("interrupted")) / "run"
  shapes = []

  def restore(self, abstract, restore=Checkpoints.restore):
    shapes.append(abstract)
    return restore(self, abstract)

  def told(*_, **__):
    # When the run is stopped, the round has best weights and two checkpoints.
    return (workdir / INTERRUPTED / "checkpoints" / "2").exists()

  cadence = {**judged_config.get("cadence", {}), "checkpoint": 1}
  stages = {name: {**s} for name, s in judged_config["stages"].items()}
  stages["halve"]["num_updates"] = 4
  changed = {**judged_config, "cadence": cadence, "stages": stages}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Checkpoints, "restore", restore)
    patch.setattr(Preemption, "agreed", told)
    with pytest.raises(PreemptedError):
      train.train(changed, workdir)
  return workdir, shapes[-1]


@pytest.fixture(scope="module")
def checkpoints(interrupted):
  """Reads the newest state and the best weights of the interrupted round."""
  _, shapes = interrupted

  def read(workdir, _):
    run = from_config.reopen(workdir)
    round_dir = workdir / INTERRUPTED
    with Checkpoints(round_dir) as kept:
      state = kept.restore(shapes)
    best = best_of(round_dir)
    weights = best and digest(load_best(round_dir, best, run.layout))
    return digest(state.trees if hasattr(state, "trees") else state), weights

  return read


def flipped(source, path, draw, target):
  """Copies a run, and flips one bit of a file in the copy."""
  file = pathlib.Path(copied(source, target) / path)
  data = bytearray(file.read_bytes())
  place = draw.randrange(8 * len(data))
  data[place // 8] ^= 1 << place % 8
  times = file.stat()
  file.write_bytes(data)
  os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
  return place


def is_noticed(outcome, path):
  """Whether the output names the file, or a folder that contains the file."""
  places = [str(path), *map(str, path.parents)][:-1]
  lines = [*outcome.said.splitlines(), outcome.refusal]
  return any(
    COMPLAINT.search(line) and any(place in line for place in places)
    for line in lines
  )


def check(source, patterns, read, count, tmp_path, draw):
  """Flips a bit in the files that match these patterns, `count` times."""
  paths = sorted(
    path.relative_to(source)
    for pattern in patterns
    for path in pathlib.Path(source).glob(pattern)
    if path.is_file() and path.stat().st_size
  )
  assert paths, patterns
  expected = outcome_of(
    lambda: read(copied(source, tmp_path / "as_it_was" / "run"), paths[0])
  )
  assert not expected.refusal
  silent = []
  for number in range(count):
    # Choose the files in turns, so that a large file is not chosen more often.
    path = (
      paths[number % len(paths)] if len(paths) < count else draw.choice(paths)
    )
    target = epath.Path(tmp_path) / str(number) / "run"
    place = flipped(source, path, draw, target)
    found = outcome_of(lambda t=target, p=path: read(t, p))
    same = not found.refusal and found.result == expected.result
    assert "\n" not in found.refusal
    if not same and not is_noticed(found, path):
      silent.append((str(path), place, found.refusal, found.said[-500:]))
    shutil.rmtree(target)
  assert not silent, silent


def copied(source, target):
  shutil.copytree(source, target)
  return epath.Path(target)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("patterns", "read", "count"),
  [
    (("config.json", "data.json"), config, 30),
    (("metrics.jsonl",), page, 25),
    (("*/final/**/*", "halve/*/final/**/*"), final, 40),
    (("*/final.json", "halve/*/final.json"), final_record, 15),
    (("pairs/pairs/*",), pairs, 25),
    (("evaluated/**/*",), evaluation, 15),
    (("evaluation.json", "samples/*.png"), page, 15),
  ],
  ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_a_flipped_bit_in_a_finished_run_is_never_used_silently(
  finished, patterns, read, count, tmp_path
):
  check(finished, patterns, read, count, tmp_path, random.Random(count))


# If Orbax cannot read one array, it leaves the reads of other arrays
# unfinished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_flipped_bit_in_an_interrupted_run_is_never_used_silently(
  interrupted, checkpoints, tmp_path
):
  source, _ = interrupted
  patterns = [f"{INTERRUPTED}/{k}/**/*" for k in ("checkpoints", "best")]
  check(source, patterns, checkpoints, 35, tmp_path, random.Random(8))
