"""Fixtures with a simple objective, and tiny runs that crash when told."""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from diffdistill.objectives.objective import Now, Objective, Passes, Tree
from diffdistill.run import from_config
from diffdistill.run.experiment import Experiment
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.training import checkpoint, stored
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.preemption import Preemption
from diffdistill.training.sharding import Layout, tree_shardings
from diffdistill.training.state import create_state, with_shardings
from diffdistill.training.trainer import Trainer
from tests.training.stored_given import flip_a_bit_of_an_array


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A network that multiplies its input by one square matrix."""

  size: int

  def init(self, key):
    return {"w": jax.random.normal(key, (self.size, self.size))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(Objective):
  """Fits x (student + auxiliary / 10) to x teacher, without randomness.

  A NaN in a batch makes the gradient NaN. Each trace of the loss adds the
  turn's name to `traces`. The metric "draw" depends on the key of the loss.
  """

  size: int = 6
  given: Mapping = dataclasses.field(
    default_factory=lambda: {"teacher": "denoiser"}
  )
  consumes: str = "images"
  rounds: str = "one"
  sampler: Any = None
  traces: list = dataclasses.field(default_factory=list)

  @property
  def trees(self):
    matrix = Tree(network=Matrix(self.size))
    return {"student": matrix, "auxiliary": matrix}

  @property
  def needs(self):
    return self.given

  @property
  def cycle(self):
    return ("student",), ("auxiliary",)

  def passes(self, turn, num_steps, guided):
    if turn == ("auxiliary",):
      return Passes(forward=2 + guided, gradient=1)
    return Passes(forward=0.5, gradient=2, tangent=1)

  def loss(self, turn, trees, batch, key, now):
    name = "+".join(turn)
    self.traces.append(name)
    x = batch["image"].reshape(batch["image"].shape[0], -1)
    w = trees["student"]["w"] + 0.1 * trees["auxiliary"]["w"]
    error = x @ (w - trees["teacher"]["w"])
    losses = jnp.mean(error**2, axis=1)
    one = jnp.ones(())
    metrics = {
      f"{name}/loss": (jnp.sum(losses), jnp.float32(x.shape[0])),
      f"{name}/draw": (jax.random.normal(key), one),
    }
    return jnp.mean(losses), metrics


@pytest.fixture(scope="session")
def least_squares():
  return LeastSquares


@pytest.fixture(scope="session")
def at_update():
  """at_update(objective, ...) makes (now, rates), the scalars of updates.

  They are the place in the round and the learning rates. If the rates and steps
  are lists, the scalars have one row for each update.
  """

  def make(objective, rate=0.1, num_steps=0, step=0):
    rates, steps = np.asarray(rate, np.float32), np.asarray(step, np.int32)
    now = Now(
      num_steps=np.full(rates.shape, num_steps, np.int32),
      guided=np.ones(rates.shape, np.float32),
      step=np.broadcast_to(steps, rates.shape),
      progress=np.zeros(rates.shape, np.float32),
    )
    return now, dict.fromkeys(objective.trees, rates)

  return make


class CrashError(Exception):
  """The error that stops a run in these tests."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A tiny run on one device; all its processes share compiled functions.

  A process here is one call of `train`, which a crash may end.
  """

  built: Experiment
  functions: dict

  def train(
    self,
    workdir,
    updates=None,
    observe=lambda *_: None,
    distance=lambda *_: 0.0,
    pairs=None,
    stages=None,
    preemption=None,
    clock=None,
    **cadence,
  ):
    """Trains to the end, or crashes after a given number of updates.

    Each update makes the fake clock tick, if there is one.
    """
    functions, left = self.functions, updates

    def mortal(update):
      def call(*arguments):
        nonlocal left
        if left == 0:
          raise CrashError
        if left is not None:
          left -= 1
        if clock is not None:
          clock.tick()
        return update(*arguments)

      return call

    class Warm(Trainer):
      """A trainer that reuses the functions of earlier calls."""

      def compile(self, stage, frozen, report):
        optimizer = stage.optimizer
        key = stage.name, optimizer.ema_decay, optimizer.weight_decay
        if key not in functions:
          functions[key] = super().compile(stage, frozen, report)
        compiled = functions[key]
        updates = {n: mortal(u) for n, u in compiled.updates.items()}
        return dataclasses.replace(
          compiled, updates=updates, several=mortal(compiled.several)
        )

    def usual_pairs(*arguments):
      return pair_store(self.built, epath.Path(workdir), *arguments)

    Warm(
      stages=stages or self.built.stages,
      workdir=epath.Path(workdir),
      seed=self.built.seed,
      batches=self.built.batches,
      pairs=pairs or usual_pairs,
      outside=functools.partial(load_outside, self.built),
      layout=self.built.layout,
      cadence=dataclasses.replace(self.built.cadence, **cadence),
      observe=observe,
      distance=distance,
      preemption=preemption or Preemption(),
      now=clock or time.monotonic,
    ).run()

  def crash(self, workdir, updates=None, **arguments):
    """Trains, and checks that the training ends in a crash."""
    with pytest.raises(CrashError):
      self.train(workdir, updates, **arguments)

  def compiled(self, name):
    """Returns the compiled functions of a stage, which all calls share."""
    [found] = [f for (stage, *_), f in self.functions.items() if stage == name]
    return found

  def products(self, workdir):
    """Loads all trees of weights that the finished rounds keep, by name."""
    result = {}
    for name in self.built.rounds:
      round_dir = epath.Path(workdir) / name
      if (round_dir / "final").is_dir():
        for product in sorted(checkpoint.product_names(round_dir)):
          result[f"{name} {product}"] = jax.device_get(
            checkpoint.load_final(round_dir, product, self.built.layout)
          )
    return result

  def assert_same(self, workdir, other):
    """Checks that two workdirs have the same weights and scores, to the bit."""
    self.assert_same_weights(workdir, other)
    assert scores(workdir) == scores(other)

  def assert_same_weights(self, workdir, other):
    """Checks that two workdirs have the same weights, to the bit."""
    expected, actual = self.products(other), self.products(workdir)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for (path, a), b in zip(
      jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
      assert np.array_equal(a, b), path


def scores(workdir):
  """Reads (round, step, distance or None, held-out loss or None) of records."""
  keys = "round", "step", "distance", "held_out_loss"
  return [tuple(map(record.get, keys)) for record in records(workdir)]


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def run_of(mesh_of):
  """The function run_of(config) makes the `Run` of a config."""

  def make(config):
    built = from_config.build(config)
    return Run(dataclasses.replace(built, layout=Layout(mesh=mesh_of(1))), {})

  return make


@pytest.fixture(scope="session")
def records_of():
  """The function records_of(workdir) reads the records of metrics.jsonl."""
  return records


@pytest.fixture(scope="session")
def crash_error():
  return CrashError


FROZEN = {"teacher": {"w": jnp.zeros((8, 8))}}


@pytest.fixture
def small_arrays_are_split(monkeypatch):
  """Makes fsdp split arrays of every size, also small ones."""
  monkeypatch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", 1)


@pytest.fixture
def state_on(least_squares):
  """state_on(mesh) makes a state of distinct numbers, and its shapes."""

  def make(mesh, seed=0, ema_decay=0.9):
    optimizer = Optimizer(learning_rate=0.1, ema_decay=ema_decay)
    objective, key = least_squares(size=8), jax.random.key(seed)
    optimizers = dict.fromkeys(objective.trees, optimizer)
    state = create_state(objective, optimizers, key, FROZEN)
    numbers = iter(range(1, 1000))
    state = jax.tree.map(lambda leaf: leaf + next(numbers) + seed, state)
    state = jax.device_put(state, tree_shardings(state, Layout(mesh=mesh)))
    return state, with_shardings(state, Layout(mesh=mesh))

  return make


@pytest.fixture
def round_dir(tmp_path):
  return epath.Path(tmp_path / "halve" / "004")


@pytest.fixture
def warnings(monkeypatch):
  seen = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *args: seen.append(text % args)
  )
  # Do not print the warnings of Orbax.
  return lambda: [line for line in seen if line.startswith("skipped")]


@pytest.fixture
def write_wrongly(monkeypatch):
  """The function write_wrongly(name) makes a write flip a bit of one array."""

  def wrong(name):
    real = stored.begin

    def begin(folder, trees):
      return real(folder, flip_a_bit_of_an_array(trees, name))

    monkeypatch.setattr(stored, "begin", begin)

  return wrong
