"""diffdistill train: does what the simulation says of its attempts in turn."""

import fcntl
import os
import signal
import sys
import time

from simulated import SIM, append, state

HOST = os.environ.get("SIM_HOST", "s0-w0")


def outcome():
  """Of this host's next attempt; the last one is that of all that follow."""
  with state() as s:
    turn = s.setdefault("turns", {}).get(HOST, 0)
    s["turns"][HOST] = turn + 1
    return s["plan"][min(turn, len(s["plan"]) - 1)]


def save(number):
  folder = f"{SIM}/bucket/run/halve/064/checkpoints/{number}"
  os.makedirs(folder, exist_ok=True)
  open(f"{folder}/_METADATA", "w").close()


def wait(seconds, logs):
  """Until it has lasted so long and its log was asked for so often."""
  time.sleep(seconds)
  while logs:
    with open(f"{SIM}/calls.jsonl") as file:
      if file.read().count("host.sh log") >= logs:
        return
    time.sleep(0.02)


def main():
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  append("trainings.jsonl", [HOST, *sys.argv[1:], f"cwd={os.getcwd()}"])
  alone = open(f"{SIM}/training.{HOST}", "w")  # noqa: SIM115
  try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    append("errors.jsonl", f"two trainings on {HOST}")
  if os.path.exists(f"{SIM}/finished.jsonl"):
    return 0  # every round has its final result
  now = outcome()
  first = HOST == "s0-w0"
  print("halve/064: goes on from update 5", file=sys.stderr, flush=True)
  wait(now.get("seconds", 0.05), now.get("logs", 0))
  if first and now.get("saves"):
    save(now["saves"])
  if now.get("preempted"):
    if first:
      with state() as s:
        if s["resource"]:
          s["resource"]["states"] = now["preempted"]
    # The host goes, with everything on it.
    os.killpg(0, signal.SIGKILL)
  only = now.get("only")
  status = now["status"] if only in (None, HOST) else now["others"]
  if status == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  while status == "hangs":
    time.sleep(60)
  if status == "crash":
    raise RuntimeError("a peer has died")
  if status in (1, 2):
    print("diffdistill: batch_size is 7; pass a multiple of 8", file=sys.stderr)
  # Not where another refuses: a late one would see a finished run.
  if status == 0 and first and only is None:
    append("finished.jsonl", sys.argv[1:])
  return status


if __name__ == "__main__":
  sys.exit(main())
