"""Trains for long, and fails where memory, files or threads grow.

  python -m tests.long_run [--updates=20000] [--out=results/long_run]

A tiny teacher of the digits is trained by the command line, in a process of its
own, with a record each 20 updates and a checkpoint each 100. Its resident
memory, open files and threads, and the files of its workdir, are read from
/proc and from the disk each `updates / 200` updates. OUT.json holds the
samples, OUT.png shows them. Over the second half of the run each must grow by
less than `MOST` in 10,000 updates.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from tests.children import Children, wait_until

ROOT = pathlib.Path(__file__).parent.parent
# By which a line through the second half may rise in 10,000 updates. A kilobyte
# an update is 10 MB; a file or a thread that each checkpoint leaves is 100. In
# 100 checkpoints TensorStore 0.1.86 itself keeps 3 to 6 MB; without them the
# memory is the same to the byte.
MOST = {"memory_mb": 8.0, "open_files": 20, "threads": 20, "disk_files": 20}
CONFIG = """
from diffdistill.configs import digits


def get_config():
  config = digits.get_config()
  config.run = ("teacher",)
  config.model.network = {{"kind": "mlp", "width": 32, "depth": 1}}
  config.stages.teacher.update(num_updates={updates}, batch_size=16)
  config.cadence.update(log=20, checkpoint=100)
  return config
"""


def sample(process: subprocess.Popen, workdir: pathlib.Path, update: int):
  """What the process holds now, as a row of OUT.json."""
  proc = pathlib.Path("/proc") / str(process.pid)
  lines = (proc / "status").read_text().splitlines()
  status = dict(line.split(":", 1) for line in lines)
  return {
    "update": update,
    "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
    "open_files": len(list((proc / "fd").iterdir())),
    "threads": int(status["Threads"]),
    # Of one that is being written or removed just now there may be less.
    "disk_files": sum(len(names) for _, _, names in os.walk(workdir)),
  }


def last_update(workdir: pathlib.Path) -> int:
  """Of the newest whole record."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return 0
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 4096))
    lines = file.read().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith(b"\n")]
  return json.loads(whole[-1])["step"] if whole else 0


def train(updates: int) -> list[dict[str, float]]:
  """The samples of a run of so many updates."""
  rows = []
  with tempfile.TemporaryDirectory() as folder, Children() as children:
    config = pathlib.Path(folder) / "config.py"
    config.write_text(CONFIG.format(updates=updates))
    workdir = pathlib.Path(folder) / "run"
    process = children.start(
      *(sys.executable, "-m", "diffdistill", "train"),
      *(f"--config={config}", f"--workdir={workdir}"),
      cwd=ROOT,
      stderr=subprocess.DEVNULL,
    )
    for goal in range(updates // 200, updates, updates // 200):
      wait_until(lambda goal=goal: last_update(workdir) >= goal, process)
      rows.append(sample(process, workdir, last_update(workdir)))
    assert children.finish(process).returncode == 0
  return rows


def growth(rows: list[dict[str, float]]) -> dict[str, float]:
  """By how much each rises in 10,000 updates, over the second half."""
  half = rows[len(rows) // 2 :]
  updates = [row["update"] / 10_000 for row in half]
  return {
    name: float(np.polyfit(updates, [row[name] for row in half], 1)[0])
    for name in MOST
  }


def grown(rows: list[dict[str, float]]) -> list[str]:
  """What rises by more than it may."""
  slopes = growth(rows)
  return [name for name in MOST if slopes[name] >= MOST[name]]


def draw(rows: list[dict[str, float]], path: str) -> None:
  """One panel for each quantity, against the number of updates."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 5), layout="constrained")
  for axes, name in zip(figure.subplots(2, 2).flat, MOST, strict=True):
    axes.plot([r["update"] for r in rows], [r[name] for r in rows], lw=1)
    axes.set_title(name.replace("_", " "))
    axes.set_ylim(0, 1.2 * max(row[name] for row in rows))
  figure.supxlabel("updates")
  figure.savefig(path, dpi=80)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--updates", type=int, default=20_000)
  parser.add_argument("--out", default="results/long_run")
  flags = parser.parse_args()
  rows = train(flags.updates)
  slopes, too_much = growth(rows), grown(rows)
  written = {"growth": slopes, "most": MOST, "samples": rows}
  pathlib.Path(f"{flags.out}.json").write_text(json.dumps(written, indent=1))
  draw(rows, f"{flags.out}.png")
  print(json.dumps({"growth": slopes, "most": MOST, "too_much": too_much}))
  return 1 if too_much else 0


if __name__ == "__main__":
  sys.exit(main())
