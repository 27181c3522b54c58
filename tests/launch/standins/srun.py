"""srun: runs its command as two tasks, whose largest status it has."""

import os
import signal
import subprocess
import sys

from simulated import SIM, fail, record


def main():
  record()
  words = sys.argv[1:]
  while words[0].startswith("--"):
    name = words.pop(0).partition("=")[0]
    if name not in ("--kill-on-bad-exit", "--cpus-per-task"):
      fail(f"srun: unrecognized option '{name}'")
  tasks = []
  # It hands signals on to its tasks.
  signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
  for number in range(2):
    home = f"{SIM}/tasks/{number}"
    os.makedirs(home, exist_ok=True)
    environment = {**os.environ, "SIM_HOST": f"s0-w{number}", "HOME": home}
    tasks.append(subprocess.Popen(words, env=environment))
  # It hands signals on to its tasks.
  signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
  return max(task.wait() for task in tasks)


if __name__ == "__main__":
  sys.exit(main())
