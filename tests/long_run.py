"""Trains for a long time, and fails if memory, files or threads grow.

  python -m tests.long_run [--updates=20000] [--out=results/long_run]

The command line trains a tiny teacher of the digits in a separate process, with
a record every 20 updates and a checkpoint every 100 updates. Every `updates /
200` updates, the process's memory, open files and threads are read from /proc,
and the files of its workdir are counted. OUT.json holds the samples, OUT.png
shows them. In the second half of the run each quantity must grow by less than
`MOST` in 10,000 updates.
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
# The largest growth in 10,000 updates, by a straight line through the second
# half of the run. If a kilobyte per update leaked, that would be 10 MB; if a
# file or a thread per checkpoint leaked, that would be 100. TensorStore 0.1.86
# itself keeps 3 to 6 MB in 100 checkpoints; without checkpoints the memory does
# not grow.
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
  """Reads the resources that the process uses now, as a row of OUT.json."""
  proc = pathlib.Path("/proc") / str(process.pid)
  lines = (proc / "status").read_text().splitlines()
  status = dict(line.split(":", 1) for line in lines)
  return {
    "update": update,
    "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
    "open_files": len(list((proc / "fd").iterdir())),
    "threads": int(status["Threads"]),
    # os.walk skips a folder that is removed during the count.
    "disk_files": sum(len(names) for _, _, names in os.walk(workdir)),
  }


def last_update(workdir: pathlib.Path) -> int:
  """Returns the update of the newest complete record."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return 0
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 4096))
    lines = file.read().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith(b"\n")]
  return json.loads(whole[-1])["step"] if whole else 0


def train(updates: int) -> list[dict[str, float]]:
  """Trains for a number of updates and returns the samples."""
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
  """Computes each quantity's growth in 10,000 updates, in the second half."""
  half = rows[len(rows) // 2 :]
  updates = [row["update"] / 10_000 for row in half]
  return {
    name: float(np.polyfit(updates, [row[name] for row in half], 1)[0])
    for name in MOST
  }


def grown(rows: list[dict[str, float]]) -> list[str]:
  """Lists lines of text that name each quantity that grows too much."""
  slopes = growth(rows)
  return [name for name in MOST if slopes[name] >= MOST[name]]


def draw(rows: list[dict[str, float]], path: str) -> None:
  """Draws a chart of each quantity against the number of updates."""
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
