"""Tests that every kind of stage has its rounds and refuses wrong fields."""

import dataclasses

import pytest

from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.sampling.ddim import DDIM
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.selection_by_score import Selection
from diffdistill.training.training_stage import Training

OPTIMIZER = Optimizer(learning_rate=0.1)
FROZEN = {"teacher": "teacher"}


@pytest.fixture
def stage(least_squares):
  """The function stage(...) makes a stage with these fields."""

  def make(name="halve", rounds="one", consumes="images", **fields):
    fields = {"num_updates": 10, "batch_size": 8, "frozen": FROZEN, **fields}
    return Training(
      name=name,
      objective=least_squares(
        rounds=rounds,
        consumes=consumes,
        given=dict.fromkeys(fields["frozen"], "denoiser"),
      ),
      optimizer=fields.pop("optimizer", OPTIMIZER),
      **fields,
    )

  return make


@pytest.fixture
def halving(stage):
  def make(**fields):
    return stage(rounds="halving", **fields)

  return make


def names(rounds):
  return [round_.name for round_ in rounds]


def test_rounds_halve_and_each_teaches_the_next(halving):
  rounds = halving(start_steps=32).rounds(FROZEN, guided=True)
  assert names(rounds) == [
    f"halve/{steps}" for steps in ("016", "008", "004", "002", "001")
  ]
  assert [r.num_steps for r in rounds] == [16, 8, 4, 2, 1]
  assert [r.frozen["teacher"] for r in rounds] == [
    "teacher",
    "halve/016",
    "halve/008",
    "halve/004",
    "halve/002",
  ]
  assert {r.stage for r in rounds} == {"halve"}
  # A student is not guided as a teacher, because its weights hold the guidance
  # of its teacher.
  assert [r.guided for r in rounds] == [True, False, False, False, False]


def test_only_the_teacher_changes_between_rounds(halving):
  frozen = {"teacher": "teacher", "classifier": "judge"}
  rounds = halving(frozen=frozen, start_steps=4).rounds(frozen, guided=False)
  assert [r.frozen for r in rounds] == [
    frozen,
    {"teacher": "halve/002", "classifier": "judge"},
  ]
  assert not any(r.guided for r in rounds)


@pytest.mark.parametrize(
  ("long_rounds", "lengths"),
  [(0, [10, 10, 10]), (1, [10, 10, 20]), (2, [10, 20, 20]), (4, [20, 20, 20])],
)
def test_the_last_rounds_are_twice_as_long(halving, long_rounds, lengths):
  rounds = halving(start_steps=8, long_rounds=long_rounds).rounds(FROZEN, True)
  assert [r.num_updates for r in rounds] == lengths


def test_halving_ends_at_end_steps(halving):
  rounds = halving(start_steps=24, end_steps=3).rounds(FROZEN, True)
  assert names(rounds) == ["halve/012", "halve/006", "halve/003"]


@pytest.mark.parametrize("guided", [False, True])
def test_rounds_of_other_kinds_have_the_same_length(stage, guided):
  frozen = {"teacher": "somewhere"}
  each = stage("moments", "each", num_steps=(8, 2, 1))
  one_step = stage("student", "one_step", consumes="pairs", pairs="pairs")
  any_ = stage("maps", "any", num_steps=(2, 1, 4))
  assert [r.all_steps for r in any_.rounds(frozen, guided)] == [(2, 1, 4)]
  for made, expected in (
    (stage("tune"), [("tune", 0)]),
    (any_, [("maps/any", 2)]),
    (one_step, [("student/001", 1)]),
    (each, [("moments/008", 8), ("moments/002", 2), ("moments/001", 1)]),
  ):
    rounds = made.rounds(frozen, guided)
    assert [(r.name, r.num_steps) for r in rounds] == expected
    for round_ in rounds:
      assert round_.num_updates == 10
      assert round_.frozen == frozen
      assert round_.guided == guided


def test_codes_of_rounds_are_distinct_and_fixed(halving):
  rounds = halving(start_steps=1024).rounds(FROZEN, True)
  codes = [round_.code for round_ in rounds]
  assert len(set(codes)) == 10
  assert all(0 <= code < 2**31 for code in codes)
  # The code of a name must never change: a run that began earlier would get
  # other keys and data.
  assert dict(zip(names(rounds), codes, strict=True))["halve/004"] == (
    2139373561
  )


@pytest.mark.parametrize(("start", "end"), [(24, 1), (1, 1), (2, 4), (12, 8)])
def test_steps_that_do_not_halve_are_refused(halving, start, end):
  with pytest.raises(
    ValueError, match=f"start_steps={start} to end_steps={end}; pass a start"
  ):
    halving(start_steps=start, end_steps=end)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_updates": 0}, "halve.num_updates is 0; pass 1"),
    ({"batch_size": 0}, "halve.batch_size is 0; pass 1"),
    ({"end_steps": 0}, "halve.end_steps is 0; pass 1"),
    ({"long_rounds": -1}, "halve.long_rounds is -1; pass 0"),
    (
      {"accumulate": 3},
      "accumulate=3 times groups of 1 does not divide",
    ),
    # Each of these fields is either useless for this kind of stage, or missing.
    ({"start_steps": 8}, "start_steps is 8, but its objective has no use for"),
    ({"num_steps": (8,)}, "num_steps is (8,), but its objective has no use"),
    ({"pairs": "pairs"}, "pairs is 'pairs', but its objective has no use for"),
    ({"rounds": "halving"}, "start_steps is 0, but its objective needs it"),
    ({"rounds": "each"}, "num_steps is (), but its objective needs it; pass"),
    ({"rounds": "any"}, "num_steps is (), but its objective needs it; pass"),
    ({"consumes": "pairs"}, "pairs is '', but its objective needs it; pass"),
    ({"rounds": "one_step", "num_steps": (1,)}, "has no use for it; remove it"),
    ({"rounds": "each", "num_steps": (4, 0)}, "num_steps is (4, 0); pass 1 or"),
    ({"rounds": "each", "num_steps": (4, 4)}, "num_steps is (4, 4); pass diff"),
    (
      {"select": Selection(by="held_out_loss", every=5)},
      "select.by is 'held_out_loss', but only pairs have a held-out set; pass",
    ),
  ],
)
def test_impossible_fields_of_a_stage_are_refused_in_one_line(
  stage, fields, message
):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (matched below)
    stage(**fields)
  assert message in str(error.value)
  assert str(error.value).startswith("stages.halve")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("frozen", [{}, {"teacher": "t", "classifier": "c"}])
def test_frozen_names_are_what_the_objective_needs(stage, frozen):
  made = stage()
  with pytest.raises(ValueError, match=r"needs exactly \['teacher'\]"):
    dataclasses.replace(made, frozen=frozen)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"by": "loss"}, "by is 'loss'; pass one of held_out_loss, distance"),
    ({"every": 0}, "every is 0; pass 1 or more"),
    ({"patience": -1}, "patience is -1; pass 0 or more"),
    ({"num_images": 19}, "num_images is 19; pass 20 or more"),
  ],
)
def test_a_selection_out_of_range_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Selection(**{"by": "distance", "every": 5, **fields})


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_steps": 0}, "num_steps is 0; pass 1 or more"),
    ({"num_pairs": 0}, "num_pairs is 0; pass 1 or more"),
    ({"shard_size": 0}, "shard_size is 0; pass 1 or more"),
    ({"batch_size": 0}, "batch_size is 0; pass 1 or more"),
    ({"held_out": -1}, "held_out is -1; pass 0 or more"),
    ({"max_gigabytes": -1.0}, r"max_gigabytes is -1\.0; pass 0 or more"),
    ({"num_pairs": 30}, "num_pairs is 30, which shard_size=8 does not divide"),
    ({"frozen": {}}, "need exactly a teacher"),
    ({"frozen": {"classifier": "x"}}, r"names \['classifier'\]; pairs need"),
  ],
)
def test_impossible_fields_of_a_stage_of_pairs_are_refused(fields, message):
  usual = {"num_steps": 4, "num_pairs": 32, "shard_size": 8, "batch_size": 8}
  with pytest.raises(ValueError, match=message):
    Pairs(
      name="pairs",
      sampler=DDIM(process=GaussianProcess(schedule=Cosine())),
      **{"held_out": 8, **usual, **fields},
    )
