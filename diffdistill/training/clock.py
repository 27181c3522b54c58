"""Fixes the length of a round that ends by the clock, in updates or in shards.

A round of a given number of seconds has as many updates n as fit into them. The
learning rate is constant in the first part of the round, which is the share
HELD of its updates. Before that part is over, the speed is measured, and n is
fixed and recorded. The updates before that point do not depend on n, and the
updates after it depend on n but not on the time. So a killed round resumes
exactly, and a round of num_updates=n makes the same weights at any speed.

Updates, their data and their checkpoints count as time of the round.
Compilation, scores and pictures do not.

On a CPU two rounds of the same length make the same weights to the bit; on
other devices they do if the kernels are deterministic.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from diffdistill.data.pairs import PairStore
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json

# The learning rate keeps its full value for the share HELD of a round's
# updates. The length of the round is fixed after the share SETTLED of them.
HELD = 0.25
SETTLED = 0.2
FILE = "clock.json"
UPDATES, SHARDS = "num_updates", "num_shards"


class Clock:
  """The length of one round; every process calls it at the same boundaries.

  Args:
    round_dir: where the length is recorded.
    seconds: the time that the round may take; 0 for a round of `most` updates.
    most: the largest number of updates.
    multiple: the length is a multiple of this number, unless it is `most`.
    now: returns the seconds of a clock that never goes back.
  """

  def __init__(
    self,
    round_dir: epath.Path,
    seconds: float,
    most: int,
    multiple: int = 1,
    now: Callable[[], float] = time.monotonic,
  ):
    self._round_dir = round_dir
    self._seconds = seconds
    self._most = most
    self._multiple = multiple
    self._now = now
    self._fit = float(most)
    self._from: tuple[int, float] | None = None
    self._next = most
    self._length: int | None = most
    # This is the latest update at which the length is fixed. A later update
    # might already belong to the anneal, in which the learning rate falls.
    self._latest = int(HELD * most) // multiple * multiple
    if seconds and self._latest:
      self._length = recorded(round_dir, UPDATES)

  @property
  def length(self) -> int | None:
    """The number of updates of the round; None until the length is fixed."""
    return self._length

  @property
  def last(self) -> int:
    """The number of updates; until it is fixed, the largest possible one."""
    return self._most if self._length is None else self._length

  @property
  def held(self) -> int:
    """How many updates come before the learning rate may decay."""
    if not self._seconds:
      return 0
    return math.ceil(HELD * self.last)

  def progress(self, step: int) -> float:
    """The share of the round that is done, in [0, 1).

    If the clock ends the round, this is the share that is done of the anneal,
    the part in which the learning rate falls. It is 0 before the anneal.
    """
    return max(step - self.held, 0) / max(self.last - self.held, 1)

  def left(self, step: int, speed: float) -> float:
    """An estimate of the seconds that the round still takes.

    Args:
      step: how many updates are done.
      speed: the updates per second of late; 0 if it is not known.
    """
    if self._length is None:
      return self._seconds * max(1 - step / self._fit, 0.0)
    if step >= self._length:
      return 0.0
    return (self._length - step) / speed if speed else self._seconds

  def start(self, step: int) -> None:
    """Starts the clock, or restarts it, after `step` updates."""
    self._from = step, self._now()
    self._next = step + 1

  def skip(self, seconds: float) -> None:
    """Excludes some seconds between two updates from the time of the round."""
    if self._from is not None:
      step, then = self._from
      self._from = step, then + seconds

  def look(self, step: int, wait: Callable[[], Any]) -> int | None:
    """Fixes the length between two updates, once the speed is known.

    Args:
      step: how many updates came before.
      wait: a function that returns when the devices have done those updates.

    Returns:
      The length if it was fixed now; None otherwise.
    """
    if self._length is not None or step < min(self._next, self._latest):
      return None
    wait()
    # A process that has just resumed the round has measured no time, so `here`,
    # its estimate of the length, is infinite.
    first, then = self._from or (step, 0.0)
    here = math.inf
    if step > first:
      here = self._seconds * (step - first) / max(self._now() - then, 1e-9)
    # The first process decides for all, because the clocks of processes differ.
    self._fit = fit = min(hosts.on_first(lambda: here), self._most)
    if step < min(SETTLED * fit, self._latest):
      # Look at the clock again later, but seldom, because `wait` makes the
      # devices idle.
      soon = min(SETTLED * fit, self._latest, first + 2 * (step - first))
      self._next = max(math.ceil(soon), step + 1)
      return None
    length = max(fit, step / HELD)
    length = math.ceil(length / self._multiple) * self._multiple
    self._length = min(length, self._most)
    _record(self._round_dir, UPDATES, self._length)
    return self._length


def length_in_words(length: int, seconds: float, enough: int) -> str:
  """A line about a length that was just fixed.

  Args:
    length: the number of updates of the round.
    seconds: the time of the round.
    enough: how many updates good images need; 0 if it is not known.
  """
  said = f"{length:,} updates fit into its {seconds / 60:.3g} minutes"
  if length >= enough:
    return said
  return (
    f"{said}, but good images need {enough:,} or more; pass"
    f" {enough / length:.2g} times the minutes in a new --workdir, or give the"
    " run more of this machine"
  )


def fitting_shards(
  store: PairStore,
  round_dir: epath.Path,
  seconds: float,
  say: Callable[[str], None],
  now: Callable[[], float],
) -> int:
  """Finds how many training shards a stage of pairs makes in its seconds.

  It makes one shard to measure the speed, and then records the number.

  Args:
    store: the store of the pairs, with the largest possible number of shards.
      This process has claimed the store. It has drawn pairs once before, so no
      compilation is timed here.
    round_dir: where the number is recorded.
    seconds: the time for all shards, including the held-out shards.
    say: is called with a line of text about the shard.
    now: returns the seconds of a clock that never goes back.
  """
  shards, missing = len(store.train_shards), store.missing(store.train_shards)
  if missing:
    start = now()
    made = store.make(missing[:1], say)
    here = seconds * made / max(now() - start, 1e-9)
    fit = hosts.on_first(lambda: here) - store.pairs.held_out
    there = shards - len(missing) + 1
    shards = min(max(int(fit / store.pairs.shard_size), there), shards)
  _record(round_dir, SHARDS, shards)
  return shards


def _record(round_dir: epath.Path, name: str, value: int) -> None:
  """Records the length of a round, as a number of updates or of shards."""
  hosts.on_first(lambda: write_json(round_dir / FILE, {name: value}))


def recorded(round_dir: epath.Path, name: str) -> int | None:
  """The recorded length; None if none is recorded.

  Raises:
    ValueError: if the record cannot be read.
  """
  path = round_dir / FILE

  def read() -> int | None:
    if not path.exists():
      return None
    remedy = f"restore it, or remove the folder {round_dir} to start it anew"
    try:
      value = read_json(path).get(name)
    except ValueError as error:
      raise ValueError(f"{error}; {remedy}") from error
    if not isinstance(value, int) or value < 1:
      raise ValueError(f"{path} does not say {name}; {remedy}")
    return value

  return hosts.on_first(read)
