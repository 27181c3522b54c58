"""Fixtures: fake models with a fake clock, and a tiny run that is judged."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation.features import Features, reference_statistics
from diffdistill.evaluation.generator import Generator
from diffdistill.judging import measured
from diffdistill.judging.contestants import Contestant
from diffdistill.judging.judge import Judge, nothing
from diffdistill.judging.judged_rows import JudgedRows
from diffdistill.run import from_config
from diffdistill.tools import evaluate, train


class Clock:
  """A fake of time.monotonic() that generators move; it lists their work."""

  def __init__(self):
    self.now = 1000.0
    self.made = []

  def monotonic(self):
    return self.now


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Generator):
  """A generator whose batches take one second for each step."""

  clock: Clock

  def _batches(self, params, seed, num_images, num_steps, first):
    # A call for one image only compiles, so the list of work leaves it out.
    if num_images > 1:
      self.clock.made.append((float(params), num_steps))
    for batch in super()._batches(params, seed, num_images, num_steps, first):
      self.clock.now += num_steps
      yield batch


def features(images):
  rows = images.reshape(len(images), -1)
  return Features(rows[:, :3], np.full((len(rows), 2), 0.5, np.float32))


@pytest.fixture(scope="session")
def judge_by():
  """Makes a judge with three pixels as its features."""

  def make(data, between=nothing):
    def heard(images):
      between()
      return features(images)

    return Judge(
      metric="FD-x",
      features=heard,
      reference=reference_statistics([data], features),
      said={},
      identity="",
      between=between,
    )

  return make


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(measured, "time", clock)
  return clock


@pytest.fixture
def contestant(clock, mesh_of):
  """Makes a contestant with a fake model."""

  def sample(params, noise, label, key, num_steps):
    # Images are larger with more steps, and stay in [-1, 1].
    return jnp.tanh(params * num_steps * noise)

  def make(name, num_steps, scale=0.5, **fields):
    return Contestant(
      name=name,
      num_steps=num_steps,
      generator=Slow(
        sample=sample,
        image_shape=(2, 2, 1),
        mesh=mesh_of(1),
        batch_size=8,
        clock=clock,
      ),
      load=lambda: jnp.float32(scale),
      here=scale is not None,
      **fields,
    )

  return make


@pytest.fixture(scope="session")
def config(judged_config):
  return judged_config


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "judged"
  train.train(config, workdir)
  return workdir


@pytest.fixture(scope="session")
def run(workdir):
  return from_config.reopen(workdir)


@pytest.fixture(scope="session")
def evaluated(workdir):
  """The rows of evaluation.json by model and steps, and its other content."""
  evaluate.evaluate(workdir, None, None)
  written = json.loads((workdir / "evaluation.json").read_text())
  rows = {(row["model"], row["steps"]): row for row in written.pop("rows")}
  return rows, written


@pytest.fixture
def copied(workdir, tmp_path):
  """A copy of the run without evaluations."""
  copy = tmp_path / "copy"
  leave_out = shutil.ignore_patterns("evaluated", "evaluation.*")
  shutil.copytree(workdir, copy, ignore=leave_out)
  return epath.Path(copy)


@pytest.fixture
def made(monkeypatch):
  """A list to which the model and steps of each new row are added."""
  made = []
  keep = JudgedRows.keep

  def noted(self, row):
    made.append((row.made_with["model"], row.made_with["steps"]))
    keep(self, row)

  monkeypatch.setattr(JudgedRows, "keep", noted)
  return made
