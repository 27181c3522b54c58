"""What the stand-ins share: one simulated cloud in the folder $SIM.

  state.json   what exists and what is still to go wrong
  calls.jsonl  every command, in order
  hosts/NAME   the home of a host
  bucket       what gs://bucket holds

A simulation calls them hundreds of times: they import little.
"""

import fcntl
import json
import os
import signal
import sys

SIM = os.environ["SIM"]
PROGRAM = os.path.basename(sys.argv[0])


class state:  # noqa: N801
  """What exists; what is changed in it within `with` stays changed."""

  def __enter__(self):
    self.lock = open(f"{SIM}/lock", "w")
    fcntl.flock(self.lock, fcntl.LOCK_EX)
    with open(f"{SIM}/state.json") as file:
      self.fields = json.load(file)
    return self.fields

  def __exit__(self, *_):
    with open(f"{SIM}/state.new", "w") as file:
      json.dump(self.fields, file)
    os.rename(f"{SIM}/state.new", f"{SIM}/state.json")
    self.lock.close()


def append(name, record):
  with open(f"{SIM}/{name}", "a") as file:
    file.write(json.dumps(record) + "\n")


def fail(message, status=1):
  print(message, file=sys.stderr)
  sys.exit(status)


def record():
  """Writes the command down; ends the launcher if this is its last one."""
  with state() as s:
    append("calls.jsonl", [PROGRAM, *sys.argv[1:]])
    s["calls"] = s.get("calls", 0) + 1
    kill = s["calls"] == s.get("kill_at")
  if kill:
    # The command goes on without it, as a real one would.
    os.kill(os.getppid(), s.get("kill_with", signal.SIGKILL))


def fault(*words):
  """What is to go wrong with a command that has all these words, if any."""
  with state() as s:
    for fault in s.get("faults", []):
      text = " ".join((PROGRAM, *words))
      if fault["times"] and all(w in text for w in fault["match"].split("&")):
        fault["times"] -= 1
        return fault
  return None


def end_processes(host):
  """Ends what runs on a host, as the loss of its power does."""
  root = f"{SIM}/hosts/{host}/diffdistill"
  for name in os.listdir(root) if os.path.exists(root) else ():
    try:
      with open(f"{root}/{name}/session") as file:
        os.killpg(int(file.read().split()[0]), signal.SIGKILL)
    except (OSError, ValueError, IndexError):
      pass  # no attempt, or it has ended
