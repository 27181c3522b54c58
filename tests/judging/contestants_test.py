"""The models of a tiny run, and what each one cost."""

import dataclasses

import pytest
from etils import epath

from diffdistill.judging.contestants import contestants, finished_models
from diffdistill.judging.judge import judge_of
from diffdistill.run import from_config
from diffdistill.training.report import costs

BATCH, UPDATES = 8, 2


def silent(_):
  pass


def test_the_teacher_is_judged_first_then_students_at_their_steps(run, workdir):
  judged = contestants(run, workdir, silent)
  assert [(c.name, c.num_steps, c.shown) for c in judged] == [
    ("teacher", (1, 2, 4), True),
    ("halve/002", (2,), True),
    ("halve/002 last", (2,), False),
    ("halve/001", (1,), True),
    ("halve/001 last", (1,), False),
    ("student/001", (1,), True),
    ("student/001 last", (1,), False),
  ]
  best, last = judged[1].load(), judged[2].load()
  assert best.keys() == last.keys()


def test_students_that_are_not_judged_are_named(run, workdir):
  settings = dataclasses.replace(run.evaluation, num_steps=(2, 3))
  run, said = dataclasses.replace(run, evaluation=settings), []
  judged = contestants(run, workdir, said.append)
  assert [c.name for c in judged] == ["teacher", "halve/002", "halve/002 last"]
  assert said == [
    "not judged, because num_steps lacks their steps: halve/001, student/001"
  ]


def test_passes_add_up_along_the_chain_of_students(evaluated):
  rows, _ = evaluated
  # An update takes a gradient and two teacher passes; a pair takes four steps.
  halving = UPDATES * BATCH * (3 + 2)
  pairs = (32 + 16) * 4
  expected = {
    ("teacher", 4): 0,
    ("halve/002", 2): halving,
    ("halve/002 last", 2): halving,
    ("halve/001", 1): 2 * halving,
    ("halve/001 last", 1): 2 * halving,
    ("student/001", 1): pairs + UPDATES * BATCH * 3,
  }
  for name, passes in expected.items():
    assert rows[name]["training_passes"] == passes, name


def test_seconds_add_up_along_the_chain_of_students(evaluated, workdir):
  rows, _ = evaluated
  spent = {
    name: seconds for name, (_, seconds) in costs(workdir, silent).items()
  }
  for name, rounds in (
    ("halve/002", ["halve/002"]),
    ("halve/001", ["halve/002", "halve/001"]),
    ("student/001", ["pairs", "student/001"]),
  ):
    row = rows[name, 2 if name == "halve/002" else 1]
    assert row["training_seconds"] == round(sum(spent[r] for r in rounds))
    assert min(spent[made] for made in rounds) > 0
  assert rows["teacher", 4]["training_seconds"] == 0


def test_a_row_has_its_paper_and_its_speed_up(evaluated):
  rows, _ = evaluated
  papers = {model: row["paper"] for (model, _), row in rows.items()}
  assert papers == {
    "teacher": "denoising",
    "halve/002": "progressive",
    "halve/002 last": "progressive",
    "halve/001": "progressive",
    "halve/001 last": "progressive",
    "student/001": "denoising_student",
    "student/001 last": "denoising_student",
  }
  slowest = rows["teacher", 4]
  assert slowest["speed_up"] == 1
  for row in rows.values():
    assert row["timed_batches"] == 3
    assert row["timed_batch_size"] == BATCH
    if row is not slowest:
      least, most = row["speed_up_least"], row["speed_up_most"]
      assert least <= row["speed_up"] <= most
      # Timings of a small network vary much on a busy machine, and each number
      # has only the digits that its spread allows.
      low, high = (
        row[f"images_per_second_{own}"] / slowest[f"images_per_second_{other}"]
        for own, other in (("least", "most"), ("most", "least"))
      )
      assert 0.9 * least <= high
      assert low <= 1.1 * most


def test_an_unfinished_round_is_left_out(config, workdir, tmp_path):
  """The run was stopped in the middle of a stage."""
  (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
  part, said = epath.Path(tmp_path), []
  run = from_config.reopen(part)
  with pytest.raises(ValueError, match="has no finished model yet; train"):
    finished_models(run, part, silent)
  with pytest.raises(ValueError, match="has no final result; train until"):
    judge_of(run, part)
  for name in ("teacher", "halve"):
    (tmp_path / name).symlink_to(workdir / name)
  assert list(finished_models(run, part, said.append)) == [
    "teacher",
    "halve/002",
    "halve/001",
  ]
  assert said == ["student/001 is not finished; it is left out"]
