"""The script of killed_test.py: trains in child processes and kills these.

  python killed_run.py CONFIG.json WORKDIR CACHE [SEED]

Without a seed, no child is killed. With a seed, children are killed by SIGKILL
at ten moments spread over the run, and the last child finishes the run. The
script prints the number of recorded updates at each kill.

The parent imports all modules and forks a child for each attempt, so no child
waits for imports. The parent never starts JAX, so each child starts its own.
"""

import functools
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import jax
from etils import epath

from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.training.trainer import Trainer

KILLS = 10


def train(config: dict, workdir: str, cache: str) -> None:
  """Trains the run to its end, from its newest checkpoint."""
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  run = from_config.build(config)
  Trainer(
    stages=run.stages,
    workdir=epath.Path(workdir),
    seed=run.seed,
    batches=run.batches,
    pairs=functools.partial(pair_store, run, epath.Path(workdir)),
    outside=functools.partial(load_outside, run),
    layout=run.layout,
    cadence=run.cadence,
    observe=lambda *_: None,
    distance=lambda *_: 0.0,
  ).run()


def fork(*arguments) -> int:
  """Forks a child that trains and exits; returns its process id."""
  child = os.fork()
  if child:
    return child
  status = 1
  try:
    train(*arguments)
    status = 0
  except Exception:
    traceback.print_exc()
  finally:
    os._exit(status)


def updates_recorded(workdir: str) -> int:
  """Returns how many updates are done in a run that records each update."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(child: int, workdir: str, updates: int, delay: float) -> int:
  """Kills a child some seconds after a given number of updates is recorded.

  Returns:
    The number of recorded updates at the kill.
  """
  while updates_recorded(workdir) < updates:
    if os.waitpid(child, os.WNOHANG) != (0, 0):
      raise RuntimeError("the run ended before it could be killed")
    time.sleep(0.002)
  time.sleep(delay)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return updates_recorded(workdir)


def main(config: str, workdir: str, cache: str, seed: str = "") -> None:
  fields = json.loads(pathlib.Path(config).read_text())
  stages = fields["stages"]
  length = stages["teacher"]["num_updates"]
  every = fields["cadence"]["checkpoint"]
  total = 4 * length
  if seed:
    draw = random.Random(int(seed))
    # Kill at the ends of rounds, while checkpoints are written, and at random
    # updates.
    moments = {length, 2 * length, length + every, 3 * length + 2 * every}
    others = sorted(set(range(1, total)) - moments)
    moments |= set(draw.sample(others, KILLS - len(moments)))
    for updates in sorted(moments):
      child = fork(fields, workdir, cache)
      delay = draw.choice((0, draw.uniform(0, 0.05)))
      print(kill_after(child, workdir, updates, delay), flush=True)
  _, status = os.waitpid(fork(fields, workdir, cache), 0)
  sys.exit(status != 0)


if __name__ == "__main__":
  main(*sys.argv[1:])
