"""python -m diffdistill: its commands, for one_gpu.sh.

Work is counted in units of a twentieth of a second, each of which is kept in
the workdir: a command goes on from what is there, and leaves on SIGTERM where
the real one does. The simulation says how many there are, at which one a
command waits until the simulation says so no longer, and what goes wrong.
"""

import os
import pathlib
import signal
import sys
import time

from simulated import SIM, append, fail, state

LEAVES = ("train", "evaluate")


def flag(name):
  (value,) = (
    word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")
  )
  return value


def wait_while_held(unit):
  while True:
    with state() as s:
      if s.get("hold") != unit:
        return
    time.sleep(0.02)


def work(command, folder):
  """Each unit is done once in all, whoever does it."""
  folder.mkdir(parents=True, exist_ok=True)
  with state() as s:
    units = s.get("units", {}).get(command, 1)
  for number in range(units):
    done = folder / f"{command}.{number}"
    if not done.exists():
      wait_while_held(done.name)
      time.sleep(0.05)
      append("units.jsonl", done.name)
      done.touch()


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def main():
  command = sys.argv[1]
  append("calls.jsonl", sys.argv[1:])
  with state() as s:
    s["environment"] = dict(os.environ)
    fails = s.get("fails", {}).pop(command, None)
    matplotlib = s.get("matplotlib", True)
  if command in LEAVES:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  if fails == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
      time.sleep(60)
  if fails == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if fails == "refused":
    fail("diffdistill: data/cifar10_train.npz does not exist; make it")
  if fails:
    sys.exit(fails)

  if command == "benchmark":
    print('{"stages":', flush=True)
    work(command, pathlib.Path(SIM) / "benchmarked")
    print("[]}")
    return
  workdir = pathlib.Path(flag("workdir"))
  if command != "train" and not (workdir / "trained").exists():
    fail(f"diffdistill: {workdir} holds no run")
  if command == "report":
    write(pathlib.Path(flag("out")), f"report of {workdir}")
    return
  work(command, workdir)
  if command == "train":
    write(workdir / "trained", "")
  else:
    write(workdir / "samples" / "compared.png", "sheet")
    if matplotlib:
      write(workdir / "evaluation.png", "curve")


if __name__ == "__main__":
  main()
