"""The script of forked.py: runs one command.

The script is run with a global `given`: the `arguments` of the command, the
number of `devices`, the `log` for its output, the `cache` of compiled programs,
the moment at which to `kill` itself, or None, and the `environment` to set.
"""

import os
import signal
import sys
import threading

import jax

from diffdistill import __main__
from diffdistill.system import hosts

given = globals()["given"]
ACTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def kill_at(words, number, delay):
  """Kills this process at an operation on the disk, like a power failure."""
  left, lock = None, threading.RLock()

  def die():
    os.kill(os.getpid(), signal.SIGKILL)

  def hook(event, arguments):
    nonlocal left
    if event == "open":
      path, _, flags = arguments
      if not flags & (os.O_WRONLY | os.O_RDWR):
        return
    elif event in ACTS:
      path = arguments[0]
    else:
      return
    with lock:
      if left is None and words in str(path):
        left = number
      if left is None:
        return
      left -= 1
    if left == 0:
      threading.Timer(delay, die).start() if delay else die()

  sys.addaudithook(hook)


os.environ.update(given["environment"])
log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
jax.config.update("jax_num_cpu_devices", given["devices"])
jax.config.update("jax_compilation_cache_dir", given["cache"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# Some processes wait until JAX notices that another process is lost. This
# setting shortens the wait.
hosts.HEARTBEAT_SECONDS = 20
sys.argv = ["diffdistill", *given["arguments"]]
if given["kill"]:
  kill_at(*given["kill"])
status = __main__.main()
hosts.leave()
# JAX shuts down at the end of a normal process, but not at the end of a forked
# one, so do it here.
jax.distributed.shutdown()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
