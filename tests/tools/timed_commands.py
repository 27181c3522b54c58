"""A script that stands in for the commands of `diffdistill run`, and runs it.

  timed_commands.py run FLAG...      time_limit.run, which starts this script
  timed_commands.py COMMAND FLAG...  acts as a command; `check` names the device

The work of a command is a number of units of a twentieth of a second. The
workdir keeps each finished unit, so a command continues after the last one. A
command leaves on SIGTERM if the real command does. state.json in the folder
$SIM states the number of units, the unit at which a command waits, and the
failures.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

SIM = pathlib.Path(os.environ["SIM"])
LEAVES = ("train", "evaluate")


def read():
  return json.loads((SIM / "state.json").read_text())


def append(name, record):
  with open(SIM / name, "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps(record) + "\n")


def flag(name):
  (value,) = (
    word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")
  )
  return value


def work(command, folder):
  """Does the units of a command that no earlier process has done."""
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(read()["units"].get(command, 1)):
    done = folder / f"{command}.{number}"
    if not done.exists():
      while read().get("hold") == done.name:
        time.sleep(0.02)
      time.sleep(0.05)
      # A signal between these two lines would make the unit be done twice.
      signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
      append("units.jsonl", done.name)
      done.touch()
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def fail(how):
  if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
      time.sleep(60)
  if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if how == "leaves a process":
    if not os.fork():
      time.sleep(600)
    return
  print("diffdistill: data/train.npz does not exist", file=sys.stderr)
  sys.exit(how)


def command():
  name = sys.argv[1]
  append("calls.jsonl", sys.argv[1:])
  append("environments.jsonl", dict(os.environ))
  if name in LEAVES:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  if name in read()["fails"]:
    fail(read()["fails"][name])
  if name == "check":
    print(read()["device"])
  elif name == "benchmark":
    print('{"stages":', flush=True)
    work(name, SIM / "benchmarked")
    print("[]}")
  elif name == "report":
    pathlib.Path(flag("out")).write_text(f"report of {flag('workdir')}")
  else:
    workdir = pathlib.Path(flag("workdir"))
    work(name, workdir)
    if name == "evaluate":
      (workdir / "samples").mkdir(exist_ok=True)
      (workdir / "samples" / "compared.png").write_text("sheet")
      if read()["matplotlib"]:
        (workdir / "evaluation.png").write_text("curve")


def run():
  from etils import epath

  from diffdistill.system import signals
  from diffdistill.tools import time_limit

  program = (sys.executable, "-IS", __file__)
  time_limit.PROGRAM = program
  time_limit.CHECK = (*program, "check")
  # Wait only briefly for the lock, because some tests leave a command running.
  time_limit.SECONDS_TO_HOLD = 0.2

  def timed():
    try:
      time_limit.run(
        json.loads(flag("words")),
        epath.Path("runs/a"),
        epath.Path("results"),
        minutes=float(flag("minutes")),
        reserve=float(flag("reserve")),
        cpu=False,
      )
    except (ValueError, time_limit.StoppedError) as error:
      print(f"diffdistill: {error}", file=sys.stderr)
      return getattr(error, "status", 1)
    return 0

  return signals.run(timed, time_limit.GO_ON)


if __name__ == "__main__":
  sys.exit(run() if sys.argv[1] == "run" else command())
