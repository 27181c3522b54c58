"""A real Slurm cluster of two nodes on this machine, for tests.

Each node is a slurmd with its own process ids, mounts and host name, by
namespaces of Linux. So killing a node also kills its tasks, as a power cut
does. All files are in one folder.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.children import Children, wait_until

PACKAGES = "slurm-wlm munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES = ("n1", "n2")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# After scancel and after the time limit, tasks have this many seconds to save.
SECONDS_TO_SAVE = 20
# Nodes have more CPUs than the machine, so that several jobs run side by side.
# A requeued job starts after cred_expire, which is at least five seconds.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait={seconds}
SlurmdTimeout=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# The first process of a node. Its tasks find each other by the nodes' names.
NODE = """
mount --bind "$1/hosts" /etc/hosts
hostname "$2"
exec slurmd -D -f "$1/slurm.conf"
"""


def require() -> None:
  """Skips the tests where Slurm cannot run; fails if the tests must run."""
  missing = [p for p in PROGRAMS if not shutil.which(p, path=PATH)]
  if missing:
    reason = f"{', '.join(missing)} not found; apt-get install {PACKAGES}"
  elif os.geteuid():
    reason = "only root can start the nodes of a cluster"
  else:
    return
  if os.environ.get("CI") == "true":
    pytest.fail(reason)
  pytest.skip(reason)


class Cluster:
  """The daemons of a cluster; as a context manager it ends them all.

  Args:
    folder: an empty folder for all files of the cluster.
    environment: the environment variables of the daemons and of the jobs.
  """

  def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
    self._folder = folder
    self._children = Children()
    self._environment = {
      **environment,
      "PATH": f"{environment['PATH']}:/usr/sbin:/sbin",
      "SLURM_CONF": str(folder / "slurm.conf"),
    }
    self._nodes: dict[str, subprocess.Popen] = {}

  def __enter__(self) -> "Cluster":
    self._configure()
    with contextlib.ExitStack() as on_error:
      on_error.callback(self._children.kill)
      self._start()
      on_error.pop_all()
    return self

  def __exit__(self, *_) -> None:
    self._children.kill()

  def _configure(self) -> None:
    with contextlib.ExitStack() as stack:
      sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
      for sock in sockets:
        sock.bind(("127.0.0.1", 0))
      ports = [sock.getsockname()[1] for sock in sockets]
    (self._folder / "state").mkdir()
    (self._folder / "munge.key").touch(mode=0o600)
    (self._folder / "munge.key").write_bytes(os.urandom(1024))
    hosts = pathlib.Path("/etc/hosts").read_text()
    (self._folder / "hosts").write_text(f"127.0.0.1 {' '.join(NODES)}\n{hosts}")
    (self._folder / "slurm.conf").write_text(
      CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0],
        ports=ports,
        folder=self._folder,
        seconds=SECONDS_TO_SAVE,
      )
    )

  def _start(self) -> None:
    files = {
      f"--{name}-file": self._folder / f"munge.{name}"
      for name in ("key", "pid", "log", "seed")
    }
    files["--socket"] = self._folder / "munge.socket"
    # The folder may belong to a group that can write; munged refuses it without
    # --force.
    options = [f"{name}={path}" for name, path in files.items()]
    munged = self._daemon("munged", "--foreground", "--force", *options)
    wait_until((self._folder / "munge.socket").exists, munged)
    self._controller = self._daemon("slurmctld", "-D")
    for node in NODES:
      self.start_node(node)
    self.until(lambda: self.call("sinfo", "-h", "-o", "%T %D") == "idle 2")

  def _daemon(self, *command: str) -> subprocess.Popen:
    # A daemon starts no process with the variable by which children.py finds
    # processes, except jobs, which inherit it from sbatch.
    with (self._folder / "daemons.log").open("ab") as log:
      return self._children.start(
        *command,
        env=self._environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
      )

  def start_node(self, node: str) -> None:
    """Starts a node, which then offers itself to the cluster."""
    spaces = ("--mount", "--uts", "--pid", "--fork", "--mount-proc")
    self._nodes[node] = self._daemon(
      *("unshare", "--kill-child", *spaces, "sh", "-ec", NODE),
      *("sh", str(self._folder), node),
    )

  def kill_node(self, node: str) -> None:
    """Kills all processes of a node at once."""
    os.killpg(self._nodes[node].pid, signal.SIGKILL)
    self._nodes[node].wait()

  def call(self, *command: object, **options: object) -> str:
    """Runs a command with Slurm's variables and returns what it prints."""
    done = self._children.run(
      *command, env=self._environment, check=True, **options
    )
    return done.stdout.strip()

  def until(self, true) -> None:
    """Waits until `true()`, which may call Slurm."""

    def look():
      time.sleep(0.2)
      return true()

    wait_until(look, self._controller)
