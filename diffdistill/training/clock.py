"""How long a round is that ends by the clock, of updates or of pairs.

A round of so many seconds has as many updates n as fit into them, found out on
the way: the learning rate is held for the first HELD of a round, and before
they are over the speed is known, and with it n. So all that a round does is a
function of n alone, which is written down before any update depends on it: a
killed round resumes exactly, and a round of n updates that is given n makes
the same weights at any speed.

Updates, their data and what is saved are on the clock. What compiles is not,
nor are scores and pictures.

On a CPU the same length makes the same weights to the bit; elsewhere as far as
its kernels are deterministic.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from diffdistill.data.pairs import PairStore
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json

# Shares of a round's updates: held at the full learning rate, and done by the
# time its length is settled.
HELD = 0.25
SETTLED = 0.2
FILE = "clock.json"
UPDATES, SHARDS = "num_updates", "num_shards"


class Clock:
  """The length of one round; all processes ask at the same boundaries.

  Args:
    round_dir: where the length is written down.
    seconds: that the round may take; 0 where it has `most` updates.
    most: updates.
    multiple: of the length, where it is not `most`.
    now: seconds of a clock that never goes back.
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
    # The last update at which the length can be settled, so that what was done
    # is held in rounds of any length that it may come to.
    self._latest = int(HELD * most) // multiple * multiple
    if seconds and self._latest:
      self._length = recorded(round_dir, UPDATES)

  @property
  def length(self) -> int | None:
    """Updates of the round; None while that is not settled."""
    return self._length

  @property
  def last(self) -> int:
    """Updates of the round, at the most."""
    return self._most if self._length is None else self._length

  @property
  def held(self) -> int:
    """Updates that decay has to wait for."""
    if not self._seconds:
      return 0
    return math.ceil(HELD * self.last)

  def progress(self, step: int) -> float:
    """The part of the round that is done, in [0, 1).

    Where the clock ends the round, the part of its anneal, and 0 before it.
    """
    return max(step - self.held, 0) / max(self.last - self.held, 1)

  def left(self, step: int) -> float:
    """Seconds that the round may still take, as far as one can say."""
    return self._seconds * max(1 - step / min(self._fit, self.last), 0.0)

  def start(self, step: int) -> None:
    """Begins to count, or does so anew: all up to `step` is done."""
    self._from = step, self._now()
    self._next = step + 1

  def skip(self, seconds: float) -> None:
    """Takes out what came between two updates."""
    if self._from is not None:
      step, then = self._from
      self._from = step, then + seconds

  def look(self, step: int, wait: Callable[[], Any]) -> None:
    """Settles the length at this boundary, where it is time to.

    Args:
      step: updates before it.
      wait: returns when they are done.
    """
    if self._length is not None or step < min(self._next, self._latest):
      return
    wait()
    # A round that is resumed at the latest moment has nothing to go by.
    first, then = self._from or (step, 0.0)
    here = math.inf
    if step > first:
      here = self._seconds * (step - first) / max(self._now() - then, 1e-9)
    # One host's word: clocks differ.
    self._fit = fit = min(hosts.on_first(lambda: here), self._most)
    if step < min(SETTLED * fit, self._latest):
      # Often enough to be in time, and seldom: to wait costs time.
      soon = min(SETTLED * fit, self._latest, first + 2 * (step - first))
      self._next = max(math.ceil(soon), step + 1)
      return
    length = max(fit, step / HELD)
    length = math.ceil(length / self._multiple) * self._multiple
    self._length = min(length, self._most)
    _record(self._round_dir, UPDATES, self._length)


def fitting_shards(
  store: PairStore,
  round_dir: epath.Path,
  seconds: float,
  say: Callable[[str], None],
  now: Callable[[], float],
) -> int:
  """How many training shards a stage of pairs makes in its seconds.

  Written down once it is known, which one shard is made for.

  Args:
    store: of all shards that there could be; claimed, and has drawn before, so
      that nothing compiles here.
    round_dir: where the number is written down.
    seconds: that they may take, with those held out.
    say: is told of the shard.
    now: see `Clock`.
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
  """Writes down a length."""
  hosts.on_first(lambda: write_json(round_dir / FILE, {name: value}))


def recorded(round_dir: epath.Path, name: str) -> int | None:
  """The length that was written down; None where none was.

  Raises:
    ValueError: where it cannot be read.
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
