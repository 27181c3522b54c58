"""Prints the time from a start to its first update, with kept programs or none.

  python -m tests.first_update [--turns=3] [--config=digits:progressive ...]

A training is told to leave by SIGTERM after its first update, again and again,
as on machines that are taken away. The first start finds no kept program. Of
the later starts, every second one may use the kept programs; the others are
told by JAX's variable to keep none. The cache is a temporary folder. Flags that
this script does not know are those of `diffdistill train`.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

from tests.children import Children, wait_until

ROOT = pathlib.Path(__file__).parent.parent


def records(workdir):
  """The records of the run that hold the time to a first update."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  found = []
  for line in lines:
    # The last line may be only half written.
    if line.endswith("}"):
      found.append(json.loads(line))
  return [r for r in found if "first_update_seconds" in r]


def cpu_of_children():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def start(children, words, workdir, environment):
  """Trains until the first update, and returns its seconds and CPU-seconds."""
  before, cpu = len(records(workdir)), cpu_of_children()
  process = children.start(
    *(sys.executable, "-m", "diffdistill", "train", *words),
    *(f"--workdir={workdir}", "--config.cadence.log=1"),
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  wait_until(lambda: len(records(workdir)) > before, process)
  process.terminate()
  done = children.finish(process)
  assert done.returncode == 75, done.returncode
  return records(workdir)[-1]["first_update_seconds"], cpu_of_children() - cpu


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--turns", type=int, default=3)
  given, words = parser.parse_known_args()
  if not any(word.startswith("--config=") for word in words):
    words.append("--config=digits:progressive")
  with tempfile.TemporaryDirectory() as folder, Children() as children:
    workdir = pathlib.Path(folder) / "run"
    environment = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "XDG_CACHE_HOME": f"{folder}/cache",
    }
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
      environment.pop(name, None)
    without = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    took = {"kept": [], "none kept": []}
    for label, variables in (
      ("the first start, which fills the cache", environment),
      ("the second start, which compiles what a restart needs", environment),
      *(("kept", environment), ("none kept", without)) * given.turns,
    ):
      seconds, cpu = start(children, words, workdir, variables)
      print(f"{label}: {seconds:.1f} s, {cpu:.1f} CPU-seconds", flush=True)
      took.get(label, []).append((seconds, cpu))
    for i, unit in ((0, "s"), (1, "CPU-seconds")):
      kept, none = (
        statistics.median(row[i] for row in took[label])
        for label in ("kept", "none kept")
      )
      print(
        f"median {unit} to the first update: {kept:.1f} with kept programs,"
        f" {none:.1f} without, {none / kept:.2f} times"
      )


if __name__ == "__main__":
  main()
