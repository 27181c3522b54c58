"""Tests that commands which are killed again and again have the same results.

The results must be the same bit for bit. The long tests kill a training twenty
times and the other commands ten times; the slow test is shorter. A command
kills itself by SIGKILL at one of its own operations on the disk (forked.py); a
seed decides at which operation.
"""

import hashlib
import json
import random
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.training import checkpoint
from tests.forked import Forked

CONFIG = "--config=tests/shrunken_digits.py"
SHORT = ("classifier", "teacher", "pairs", "denoising_student")
# A run is killed in these rounds, in this order; there is one round of each
# stage.
ROUNDS = (
  *("classifier", "teacher", "halve/002", "halve/001", "expert"),
  *("features/001", "moments/002", "parameter_moments/002"),
  *("pairs/pairs", "denoising_student/001"),
)
MUST_HIT = ("features/001", "moments/002", "pairs/pairs", ROUNDS[-1])
# Each command does at least this many operations on the disk. The number also
# holds for a run after a kill, when an evaluation has fewer rows left.
ACTS = {"evaluate": 30, "export": 9, "pack": 6, "carry": 100, "report": 3}
# A field depends on the clock if its name contains one of these words. Some
# such fields are digests of files that hold times.
TIMES = (
  "seconds",
  "per_second",
  "speed",
  "memory",
  "share",
  "files",
  "written",
)


@pytest.fixture(scope="module")
def fork():
  with Forked() as start:
    yield start


class Lives:
  """Runs commands to their end, with kills on the way."""

  def __init__(self, fork, folder):
    self._fork, self._log, self.kills = fork, folder / "log", 0

  def live(self, *arguments, kill=None) -> bool:
    """Runs a command; returns whether it ended normally with status 0."""
    process = self._fork(self._log, 1, *arguments, kill=kill)
    process.join()
    if kill and process.exitcode == -signal.SIGKILL:
      self.kills += 1
      return False
    assert process.exitcode == 0, self._log.read_text()[-3000:]
    return True


def moments(seed, count, rounds):
  """Draws the (round, operation, delay) of each kill, ordered by round."""
  draw = random.Random(seed)
  must = [name for name in MUST_HIT if name in rounds]
  drawn = must + draw.choices(rounds, k=count - len(must))
  return [
    (name, draw.randint(1, 12), draw.choice((0, draw.uniform(0, 0.05))))
    for name in sorted(drawn, key=rounds.index)
  ]


def train(lives, workdir, kills, *flags):
  """Trains with kills on the way, until the run is finished."""
  command = ("train", CONFIG, f"--workdir={workdir}", *flags)
  for kill in kills:
    # If the run ends before the operation, no more kills are possible.
    if lives.live(*command, kill=kill):
      break
  lives.live(*command)


def plain(value):
  """Removes the fields that depend on the clock from JSON values."""
  if isinstance(value, dict):
    return {
      k: plain(v) for k, v in value.items() if not any(t in k for t in TIMES)
    }
  return [plain(v) for v in value] if isinstance(value, list) else value


def digest(path):
  """Computes a digest of a file's content, without parts about time."""
  if path.suffix == ".npz":
    with np.load(path) as arrays:
      # Leave out the array "row" of a judged row, because it holds speeds. Its
      # columns are also in evaluation.json.
      names = sorted(set(arrays) - {"row"})
      parts = [(k, arrays[k].tobytes()) for k in names]
      data = repr(parts).encode()
  elif path.suffix == ".json":
    fields = json.loads(path.read_bytes())
    fields.pop("digest", None)
    data = json.dumps(plain(fields), sort_keys=True).encode()
  elif path.suffix == ".md":
    # Leave out the last columns of the table in a model card, because they
    # depend on the clock.
    lines = path.read_text().splitlines()
    data = "\n".join(line[:80].rstrip() for line in lines).encode()
  else:
    data = path.read_bytes()
  return hashlib.sha256(data).hexdigest()


def trained(workdir):
  """Collects a training's weights, pairs and the steps of its records."""
  run = from_config.reopen(epath.Path(workdir))
  made = {}
  for name, (stage, _) in run.rounds.items():
    if getattr(stage, "objective", None) is None:
      continue
    round_dir = epath.Path(workdir) / name
    for product in sorted(checkpoint.product_names(round_dir)):
      tree = checkpoint.load_final(round_dir, product, run.layout)
      leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
      made[name, product] = hashlib.sha256(b"".join(leaves)).hexdigest()
  for path in sorted((workdir / "pairs" / "pairs").iterdir()):
    made[path.name] = digest(path)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  made["records"] = [
    (r["round"], r["step"], r.get("distance"), r.get("held_out_loss"))
    for r in map(json.loads, lines)
    # Leave out the records of pairs, because they depend on how often the run
    # was started.
    if r["round"] != "pairs"
  ]
  return made


def half_written(folder):
  """Lists files and folders of writes that were not finished."""
  words = ("partial", "tmp", ".new")
  return [
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if any(word in path.name for word in words)
  ]


def judge_and_share(lives, workdir, out, kills):
  """Runs every other command, each with `kills` kills."""
  out.mkdir()
  commands = (
    ("evaluate", f"--workdir={workdir}"),
    (
      *("export", f"--workdir={workdir}", "--round=denoising_student/001"),
      f"--out={out / 'exported'}",
    ),
    ("pack", CONFIG, f"--out={out}/packed_{{split}}.npz"),
    ("carry", f"--workdir={workdir}", f"--out={out / 'carried'}"),
    ("report", f"--workdir={workdir}", f"--out={out / 'report.json'}"),
  )
  for command in commands:
    for kill in kills(command[0]):
      if lives.live(*command, kill=kill):
        break
    else:
      lives.live(*command)


def shared(workdir, out):
  """Computes digests of the outputs of these commands, by file name."""
  return {
    str(path.relative_to(folder)): digest(path)
    for folder, pattern in ((workdir, "evaluat*"), (out, "*"))
    for top in sorted(folder.glob(pattern))
    for path in [top, *top.rglob("*")]
    # Leave out pictures of curves, which hold their date, and folders of
    # weights, in which Orbax notes the time. The digests of the weights are in
    # the file beside the folder.
    if path.is_file() and path.suffix != ".png" and "final" not in path.parts
  }


def check_same(ours, theirs):
  assert ours.keys() == theirs.keys()
  other = [name for name in ours if ours[name] != theirs[name]]
  assert other == []


@pytest.mark.slow
def test_a_training_that_is_killed_gives_the_same_weights(fork, tmp_path):
  part = f"--config.run={SHORT}"
  lives = Lives(fork, tmp_path)
  train(lives, tmp_path / "peace", (), part)
  rounds = [name for name in ROUNDS if name.startswith(SHORT)]
  train(lives, tmp_path / "killed", moments(3, 4, rounds), part)
  assert lives.kills == 4
  check_same(trained(tmp_path / "killed"), trained(tmp_path / "peace"))
  assert half_written(tmp_path / "killed") == []


@pytest.fixture(scope="module")
def peace(fork, tmp_path_factory):
  """Trains a run that is not killed, and gives its workdir."""
  folder = tmp_path_factory.mktemp("peace")
  train(Lives(fork, folder), folder / "run", ())
  return folder / "run"


@pytest.mark.long
def test_twenty_kills_of_a_training_do_not_change_its_results(
  fork, peace, tmp_path
):
  lives = Lives(fork, tmp_path)
  train(lives, tmp_path / "run", moments(5, 20, ROUNDS))
  assert lives.kills == 20
  check_same(trained(tmp_path / "run"), trained(peace))
  assert half_written(tmp_path / "run") == []


@pytest.mark.long
def test_ten_kills_of_other_commands_do_not_change_their_results(
  fork, peace, tmp_path
):
  draw = random.Random(6)
  found = []
  for name, times in (("peace", 0), ("killed", 2)):
    lives = Lives(fork, tmp_path)
    # All commands read the same run, so that the times which it recorded are
    # equal too.
    workdir, out = tmp_path / name / "run", tmp_path / name / "out"
    shutil.copytree(peace, workdir)
    judge_and_share(
      lives,
      workdir,
      out,
      lambda command, times=times: [
        ("", draw.randint(1, ACTS[command]), 0) for _ in range(times)
      ],
    )
    assert lives.kills == 5 * times
    assert half_written(tmp_path / name) == []
    found.append(shared(workdir, out))
  check_same(*found)
