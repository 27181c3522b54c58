"""Leaving when the machine is wanted for something else: SIGTERM.

A scheduler that takes a machine away sends SIGTERM first; so do `docker stop`,
Kubernetes, Slurm, and a cloud before it stops a spot machine. A terminal that
is closed sends SIGHUP, and ctrl-C is SIGINT. The trainer then saves at the next
boundary between updates and leaves. A command that is still far from its first
boundary has nothing to save, and ends at once (signals.py).
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

# Boundaries that a vote is counted after: an update is under way and another
# waits for it while this process looks at what came before them.
LAG = 2


class PreemptedError(Exception):
  """Training was asked to leave and has; the message says where it goes on."""

  @property
  def status(self) -> int:
    """The command's: 130 after ctrl-C, or EX_TEMPFAIL of sysexits.h.

    By the second one a scheduler knows to start it again.
    """
    listener = signals.listener()
    first = None if listener is None else listener.first
    return signals.STATUSES[signal.Signals(first or signal.SIGTERM)]


class Preemption:
  """Whether to leave; listens for signals from `with` on to its end.

  In a command it listens for SIGTERM, SIGHUP and SIGINT. Until `agreed` is
  asked for the first time, these end the command at once (signals.py).
  Elsewhere, as in a notebook, it listens for SIGTERM and SIGHUP.

  Of several processes one may be told alone, or each at another moment, and
  all must leave at the same boundary. So at each boundary they vote, by a sum
  over all devices that nobody waits for: it is looked at LAG boundaries later.

  JAX has a service of its own, `reached_preemption_sync_point`. Orbax asks it
  too, at every save and with another number; where the last question of each
  process is Orbax's, it answers with a step that is past, and nobody leaves.
  """

  def __init__(self):
    self._listening = False
    self._told = False
    self._before: dict[int, Any] = {}
    self._votes: collections.deque[Array] = collections.deque()

  def __enter__(self) -> "Preemption":
    # Python's signals are the main thread's; a run in another has none.
    self._listening = threading.current_thread() is threading.main_thread()
    if self._listening:
      for number in _numbers():
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, before in self._before.items():
      # None: installed by something else than Python, which is lost.
      signal.signal(number, before or signal.SIG_DFL)
    self._before.clear()
    self._listening = False

  def _note(self, number: int, frame: FrameType | None) -> None:
    """However often it comes, it says one thing."""
    listener = signals.listener()
    if listener is not None:
      listener.note(number)
    self._told = True

  def agreed(self, mesh: Mesh, *, lag: int = LAG) -> bool:
    """Whether to leave here; every process asks at every boundary.

    Args:
      mesh: of the run.
      lag: 0 to wait for the others, where that costs little.
    """
    listener = signals.listener()
    if listener is not None:
      listener.boundary()
    leave = self._vote(mesh, lag)
    if leave and listener is not None:
      listener.leave()
    return leave

  def _vote(self, mesh: Mesh, lag: int) -> bool:
    """Whether this process, or one of several that voted, is told to leave."""
    if jax.process_count() == 1 or not self._listening:
      return self._told
    self._votes.append(_counter(mesh)(_ballots(mesh)[self._told]))
    leave = False
    while len(self._votes) > lag:
      leave |= bool(self._votes.popleft())
    return leave


def _numbers() -> tuple[int, ...]:
  """The signals to listen for."""
  listener = signals.listener()
  if listener is not None:
    return listener.numbers
  hung_up = signal.getsignal(signal.SIGHUP)
  if hung_up is signal.SIG_IGN:
    return (signal.SIGTERM,)
  return (signal.SIGTERM, signal.SIGHUP)


@functools.cache
def _ballots(mesh: Mesh) -> tuple[Array, Array]:
  """This process's no and yes: a row on each of its devices."""
  sharding = batch_sharding(mesh)

  def make(told: bool) -> Array:
    return jax.make_array_from_callback(
      (mesh.size,), sharding, lambda rows: np.full(mesh.size, told)[rows]
    )

  return make(False), make(True)


@functools.cache
def _counter(mesh: Mesh) -> Callable[[Array], Array]:
  """Whether any process said yes, once it is known."""
  return jax.jit(jnp.any, out_shardings=replicated(mesh))
