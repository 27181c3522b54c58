"""Rows of a comparison: their facts, their speed, and who is pictured."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation import comparison, grids
from diffdistill.evaluation.comparison import (
  Contestant,
  Settings,
  compare,
  write_comparison,
)
from diffdistill.evaluation.evaluator import Generator
from diffdistill.evaluation.features import Features, reference_statistics

SETTINGS = Settings(num_images=24, batch_size=8, gap_images=13)


class Clock:
  """time.monotonic(), moved by generators."""

  now = 1000.0

  def monotonic(self):
    return self.now


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Generator):
  """A generator of which a step of a batch takes a second."""

  clock: Clock

  def _batches(self, params, seed, num_images, num_steps, first):
    for batch in super()._batches(params, seed, num_images, num_steps, first):
      self.clock.now += num_steps
      yield batch


def features(images):
  rows = images.reshape(len(images), -1)
  return Features(rows[:, :3], np.full((len(rows), 2), 0.5, np.float32))


@pytest.fixture
def contestant(monkeypatch, mesh_of):
  clock = Clock()
  monkeypatch.setattr(comparison, "time", clock)

  def sample(params, noise, label, key, num_steps):
    # The more steps, the larger; clipped to images.
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
      **fields,
    )

  return make


@pytest.fixture
def compared(contestant):
  """(rows, images) of a teacher and three versions of a student."""
  random = np.random.default_rng(0)
  data = random.uniform(-1, 1, (40, 2, 2, 1)).astype(np.float32)
  said = []
  rows, images = compare(
    contestant("teacher", (1, 4), facts={"paper": "denoising"}),
    [
      contestant("halve/002", (2,), facts={"paper": "x", "passes": 7}),
      # Twice the scale at half the steps: the teacher's images to the bit.
      contestant("moments/002", (2,), 1.0),
      contestant("moments/002 last", (2,), 2.0, shown=False),
    ],
    features,
    reference_statistics([data], features),
    "FD-x",
    "",
    SETTINGS,
    said.append,
  )
  assert len(said) == len(rows)
  return rows, images


def test_a_row_for_each_model_and_number_of_steps(compared):
  rows, _ = compared
  assert [(row["model"], row["steps"]) for row in rows] == [
    ("teacher", 4),
    ("teacher", 1),
    ("halve/002", 2),
    ("moments/002", 2),
    ("moments/002 last", 2),
  ]
  gaps = [row["teacher_gap"] for row in rows]
  assert gaps[0] == gaps[3] == 0
  assert min(gaps[1], gaps[2], gaps[4]) > 0.05


def test_facts_are_columns(compared):
  rows, _ = compared
  assert [row.get("paper") for row in rows[:3]] == [
    "denoising",
    "denoising",
    "x",
  ]
  assert rows[2]["passes"] == 7
  assert "passes" not in rows[0]


def test_speed_is_measured_and_against_the_teacher_at_its_most_steps(compared):
  rows, _ = compared
  # 24 images in three batches of `steps` seconds, compilation left out.
  assert [row["images_per_second"] for row in rows] == [2, 8, 4, 4, 4]
  assert [row["speed_up"] for row in rows] == [1, 4, 2, 2, 2]


def test_what_is_not_shown_is_in_no_picture(compared, tmp_path, monkeypatch):
  rows, images = compared
  assert list(images) == [
    "teacher, 4 steps",
    "teacher, 1 steps",
    "halve/002, 2 steps",
    "moments/002, 2 steps",
  ]
  assert {len(shown) for shown in images.values()} == {12}
  drawn = {}
  monkeypatch.setattr(
    grids, "curve", lambda curves, label, path: drawn.update(curves)
  )
  write_comparison(epath.Path(tmp_path), {"seed": 0}, rows, images, "FD-x")
  assert {name: [steps for steps, _ in points] for name, points in
          drawn.items()} == {
    "teacher": [4, 1],
    "halve": [2],
    "moments": [2],
  }  # fmt: skip
  written = json.loads((tmp_path / "evaluation.json").read_text())
  assert written["seed"] == 0
  assert [row["model"] for row in written["rows"]][-1] == "moments/002 last"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_images": 19}, "num_images is 19; pass 20 or more"),
    ({"gap_images": 0}, "gap_images is 0; pass 1 or more"),
    ({"seed": 2**32}, "seed is 4294967296; pass less than"),
    ({"num_steps": ()}, r"num_steps is \(\); pass one or more positive"),
    ({"num_steps": (4, 0)}, r"num_steps is \(4, 0\)"),
  ],
)
def test_refuses_settings_out_of_range(fields, message):
  with pytest.raises(ValueError, match=message):
    Settings(**fields)
