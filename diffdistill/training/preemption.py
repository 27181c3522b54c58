"""Saves and ends a run when its machine is needed elsewhere (SIGTERM).

A scheduler sends SIGTERM before it takes a machine away. `docker stop`,
Kubernetes, Slurm, and a cloud that stops a spot machine do the same. A closed
terminal sends SIGHUP, and ctrl-C sends SIGINT. The trainer then saves and ends
at the next boundary between two updates. A command that has not reached its
first boundary has nothing to save, and ends at once (signals.py).
"""

import collections
import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from diffdistill.system import signals
from diffdistill.training.sharding import batch_sharding, replicated

# The processes read the result of a vote this many boundaries later. By then it
# is computed, so the host need not make the devices wait.
LAG = 2


class PreemptedError(Exception):
  """Training has ended on request; the message says where it can be resumed."""

  @property
  def status(self) -> int:
    """The exit status: 130 after ctrl-C, otherwise 75, EX_TEMPFAIL.

    A scheduler restarts a command that ended with 75.
    """
    listener = signals.listener()
    first = None if listener is None else listener.first
    return signals.STATUSES[signal.Signals(first or signal.SIGTERM)]


class Preemption:
  """Decides when to end a run; listens for signals inside its `with` block.

  In a command it listens for SIGTERM, SIGHUP and SIGINT. Before the first call
  of `agreed`, these signals end the command at once (signals.py). Outside a
  command, such as in a notebook, it listens for SIGTERM and SIGHUP.

  A signal may reach only one of several processes, or each at another time, but
  all must end at the same boundary. So they vote at each boundary, by a sum
  over all devices. The sum is read LAG boundaries later, so that no process
  waits for it.

  JAX has a service for this, `reached_preemption_sync_point`. It is not used
  here, because Orbax calls it too, at every save and with other step numbers.
  If the last call of each process comes from Orbax, the service answers with a
  step in the past, and no process leaves.
  """

  def __init__(self):
    self._listening = False
    self._told = False
    self._before: dict[int, Any] = {}
    self._votes: collections.deque[Array] = collections.deque()

  def __enter__(self) -> "Preemption":
    # Python delivers signals to the main thread only.
    self._listening = threading.current_thread() is threading.main_thread()
    if self._listening:
      for number in _numbers():
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, before in self._before.items():
      # None means that the old handler was not set from Python, so it cannot be
      # restored.
      signal.signal(number, before or signal.SIG_DFL)
    self._before.clear()
    self._listening = False

  def _note(self, number: int, frame: FrameType | None) -> None:
    """Notes a signal; a second signal has no effect."""
    listener = signals.listener()
    if listener is not None:
      listener.note(number)
    self._told = True

  def agreed(self, mesh: Mesh, *, lag: int = LAG) -> bool:
    """Whether to end here; every process must call this at every boundary.

    Args:
      mesh: the mesh of the run.
      lag: how many boundaries later the result of a vote is read; 0 reads it at
        once.
    """
    listener = signals.listener()
    if listener is not None:
      listener.boundary()
    leave = self._vote(mesh, lag)
    if leave and listener is not None:
      listener.leave()
    return leave

  def _vote(self, mesh: Mesh, lag: int) -> bool:
    """Votes with all processes, and returns whether any was told to end."""
    if jax.process_count() == 1 or not self._listening:
      return self._told
    self._votes.append(_counter(mesh)(_ballots(mesh)[self._told]))
    leave = False
    while len(self._votes) > lag:
      leave |= bool(self._votes.popleft())
    return leave


def _numbers() -> tuple[int, ...]:
  """Lists the numbers of the signals to listen for."""
  listener = signals.listener()
  if listener is not None:
    return listener.numbers
  hung_up = signal.getsignal(signal.SIGHUP)
  if hung_up is signal.SIG_IGN:
    return (signal.SIGTERM,)
  return (signal.SIGTERM, signal.SIGHUP)


@functools.cache
def _ballots(mesh: Mesh) -> tuple[Array, Array]:
  """Makes the two possible votes of a process, with a row for each device."""
  sharding = batch_sharding(mesh)

  def make(told: bool) -> Array:
    return jax.make_array_from_callback(
      (mesh.size,), sharding, lambda rows: np.full(mesh.size, told)[rows]
    )

  return make(False), make(True)


@functools.cache
def _counter(mesh: Mesh) -> Callable[[Array], Array]:
  """Makes a function that counts votes and returns whether any is yes."""
  return jax.jit(jnp.any, out_shardings=replicated(mesh))
