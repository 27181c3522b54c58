"""Rows of a comparison: facts, speeds, and which models are shown."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation import drawing
from diffdistill.evaluation.features import Features, reference_statistics
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.settings import Settings
from diffdistill.judging import measured
from diffdistill.judging.comparison import compare
from diffdistill.judging.contestants import Contestant
from diffdistill.judging.evaluate import Evaluation, write_evaluation
from diffdistill.judging.judge import Judge, nothing
from diffdistill.judging.judged_rows import JudgedRows

SETTINGS = Settings(num_images=32, batch_size=8, gap_images=13)


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
    if num_images > 1:  # the call that compiles makes one image
      self.clock.made.append((float(params), num_steps))
    for batch in super()._batches(params, seed, num_images, num_steps, first):
      self.clock.now += num_steps
      yield batch


def features(images):
  rows = images.reshape(len(images), -1)
  return Features(rows[:, :3], np.full((len(rows), 2), 0.5, np.float32))


def judge_by(data, between=nothing):
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


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(measured, "time", clock)
  return clock


@pytest.fixture
def contestant(clock, mesh_of):

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


@pytest.fixture
def compared(contestant):
  """(Rows, images) of a teacher and three versions of a student."""
  random = np.random.default_rng(0)
  data = random.uniform(-1, 1, (40, 2, 2, 1)).astype(np.float32)
  said = []
  rows, images = compare(
    [
      contestant("teacher", (1, 4), facts={"paper": "denoising"}),
      contestant("halve/002", (2,), facts={"paper": "x", "passes": 7}),
      # With twice the scale at half the steps, images equal the teacher's.
      contestant("moments/002", (2,), 1.0),
      contestant("moments/002 last", (2,), 2.0, shown=False),
    ],
    judge_by(data),
    SETTINGS,
    said.append,
  )
  assert len(said) == len(rows)
  return rows, images


def test_there_is_a_row_for_each_model_and_number_of_steps(compared):
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


def test_facts_of_a_model_are_columns_of_its_rows(compared):
  rows, _ = compared
  assert [row.get("paper") for row in rows[:3]] == [
    "denoising",
    "denoising",
    "x",
  ]
  assert rows[2]["passes"] == 7
  assert "passes" not in rows[0]


def test_speed_up_is_against_the_teacher_at_its_most_steps(compared):
  rows, _ = compared
  # Four batches of 8 images take `steps` seconds each; the first does not
  # count.
  assert [row["images_per_second"] for row in rows] == [2, 8, 4, 4, 4]
  assert [row["speed_up"] for row in rows] == [1, 4, 2, 2, 2]
  assert {row["timed_batches"] for row in rows} == {3}
  assert {row["timed_batch_size"] for row in rows} == {8}


def test_a_model_that_is_not_shown_is_in_no_picture(
  compared, tmp_path, monkeypatch
):
  rows, images = compared
  assert list(images) == [
    "teacher, 4 steps",
    "teacher, 1 steps",
    "halve/002, 2 steps",
    "moments/002, 2 steps",
  ]
  assert {len(shown) for shown in images.values()} == {12}
  drawn, draw = [], drawing.over_steps

  def over_steps(shown, *more, **named):
    drawn.extend(shown)
    return draw(shown, *more, **named)

  monkeypatch.setattr(drawing, "over_steps", over_steps)
  monkeypatch.setattr(drawing, "as_png", lambda _: b"PNG")
  evaluation = Evaluation(
    metric="FD-x", summary={"seed": 0}, rows=rows, images=images
  )
  write_evaluation(epath.Path(tmp_path), evaluation, print)
  assert {curve.name: [p.x for p in curve.lines[0]] for curve in drawn} == {
    "teacher": [1, 4],
    "halve": [2],
    "moments": [2],
  }
  written = json.loads((tmp_path / "evaluation.json").read_text())
  assert written["seed"] == 0
  assert [row["model"] for row in written["rows"]][-1] == "moments/002 last"


class KilledError(Exception):
  """Stands for a signal that ends the process."""


@pytest.fixture
def judged(contestant, clock, tmp_path):
  """Judges a teacher at 4 and 1 steps and a student at 2 steps; keeps the rows.

  Returns (rows, images, (weights, steps) of each new row, reported lines).
  """
  random = np.random.default_rng(0)
  data = random.uniform(-1, 1, (40, 2, 2, 1)).astype(np.float32)

  def judge(*, teacher=0.5, student=0.75, kill=None, **fields):
    settings = dataclasses.replace(SETTINGS, **fields.pop("settings", {}))
    kept = JudgedRows(
      folder=epath.Path(tmp_path),
      made_with={
        "seed": settings.seed,
        "num_images": settings.num_images,
        **fields.pop("made_with", {}),
      },
      devices=fields.pop("devices", "1 cpu"),
      fingerprint=lambda params: f"{float(params):.3f}",
      say=lambda line: said.append(line),
    )
    said = []

    def say(line):
      said.append(line)
      if len(said) == kill:
        raise KilledError

    clock.made.clear()
    rows, images = compare(
      [
        contestant("teacher", fields.pop("steps", (1, 4)), teacher),
        contestant("halve/002", (2,), student, facts={"paper": "x"}),
      ],
      judge_by(data, **fields),
      settings,
      say,
      kept,
    )
    return rows, images, list(clock.made), said

  return judge


ALL = [(0.5, 4), (0.5, 1), (0.75, 2)]


def test_a_killed_evaluation_goes_on_with_the_first_missing_row(
  judged, tmp_path
):
  for rows_done in (1, 2):
    with pytest.raises(KilledError):
      judged(kill=rows_done, settings={"seed": rows_done})
    rows, images, made, said = judged(settings={"seed": rows_done})
    assert made == ALL[rows_done:]
    before = [line.endswith("(judged before)") for line in said]
    assert before == [True] * rows_done + [False] * (3 - rows_done)
    for path in tmp_path.rglob("*.npz"):
      path.unlink()
    whole, pictures, made, _ = judged(settings={"seed": rows_done})
    assert made == ALL
    # With the fake clock, even the speeds are the same.
    assert json.dumps(rows) == json.dumps(whole)
    assert images.keys() == pictures.keys()
    for name, shown in images.items():
      np.testing.assert_array_equal(shown, pictures[name])


def test_an_evaluation_can_stop_between_batches_and_loses_one_row(judged):
  batches = iter(range(100))

  def between():
    if next(batches) == 5:  # in the second row, as a row has four batches
      raise KilledError

  with pytest.raises(KilledError):
    judged(between=between)
  assert judged()[2] == ALL[1:]
  assert judged()[2] == []


@pytest.mark.parametrize(
  ("change", "made"),
  [
    # All gaps depend on the teacher at its most steps.
    ({"teacher": 0.25}, [(0.25, 4), (0.25, 1), (0.75, 2)]),
    ({"student": 0.25}, [(0.25, 2)]),
    ({"settings": {"seed": 1}}, ALL),
    ({"made_with": {"judge": "another"}}, ALL),
    ({"steps": (1, 8)}, [(0.5, 8), (0.5, 1), (0.75, 2)]),
    ({"steps": (4,)}, []),
    ({"devices": "8 cpu"}, []),
  ],
)
def test_a_row_that_would_be_different_is_made_again(judged, change, made):
  judged()
  rows, _, really_made, _ = judged(**change)
  assert really_made == made
  assert len(rows) == (2 if change.get("steps") == (4,) else 3)
  # Now the new rows are kept, and old rows with the same weights too.
  assert judged(**change)[2] == []
  if not {"teacher", "student"} & change.keys():
    assert judged()[2] == []


def test_a_damaged_row_is_named_and_made_again(judged, tmp_path):
  whole, *_ = judged()
  path = next((tmp_path / "halve" / "002").glob("2_*.npz"))
  data = path.read_bytes()
  middle = data.index(b"F\0\0\0D\0\0\0-")  # the name of a column
  flipped = data[:middle] + b"E" + data[middle + 1 :]
  for damaged in (data[: len(data) // 2], b"", flipped):
    path.write_bytes(damaged)
    rows, _, made, said = judged()
    assert made == [(0.75, 2)]
    assert rows == whole
    (line,) = (line for line in said if line.startswith("warning: "))
    assert line == (
      f"warning: {path} is not used, and its row is made again: it is damaged:"
      " its digest does not match"
    )
  kept = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")]
  assert sorted(f"{p.parent}/{p.name.partition('_')[0]}" for p in kept) == [
    "halve/002/2",
    "teacher/1",
    "teacher/4",
  ]


def test_a_model_without_its_weights_keeps_its_judged_row(judged):
  with pytest.raises(
    ValueError, match="teacher has not been judged at 4 steps"
  ):
    judged(teacher=None)
  with pytest.raises(KilledError):
    judged(kill=2)
  rows, _, made, said = judged(student=None)
  assert [row["model"] for row in rows] == ["teacher", "teacher"]
  assert made == []
  assert said[-1].endswith("2 steps  is left out: its weights were left behind")
  whole, *_ = judged()
  rows, images, made, _ = judged(teacher=None, student=None)
  assert (rows, made) == (whole, [])
  assert len(images) == 3
  # There is no row with other settings.
  rows, *_ = judged(student=None, settings={"seed": 1})
  assert len(rows) == 2


def test_speeds_of_other_devices_are_not_compared(judged):
  with pytest.raises(KilledError):
    judged(kill=2)
  rows, *_ = judged(devices="8 cpu")
  assert [row["devices"] for row in rows] == ["1 cpu", "1 cpu", "8 cpu"]
  assert [row["speed_up"] for row in rows] == [1, 4, None]
  assert all("devices" not in row for row in judged(settings={"seed": 1})[0])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_images": 19}, "num_images is 19; pass 20 or more"),
    ({"gap_images": 0}, "gap_images is 0; pass 1 or more"),
    ({"seed": 2**32}, "seed is 4294967296; pass 0 or more, at most 4294967295"),
    ({"num_steps": ()}, r"num_steps is \(\); pass one or more positive"),
    ({"num_steps": (4, 0)}, r"num_steps is \(4, 0\)"),
  ],
)
def test_settings_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Settings(**fields)
