import pytest

from diffdistill.training.curriculum import Stage, curriculum
from diffdistill.training.optimizers import Optimizer

OPTIMIZER = Optimizer(learning_rate=0.1)


@pytest.fixture
def stage(least_squares):
  def make(name="halve", frozen="teacher", **fields):
    fields = {"num_updates": 10, "batch_size": 8, **fields}
    return Stage(
      name=name,
      objective=least_squares(halves="start_steps" in fields),
      optimizer=fields.pop("optimizer", OPTIMIZER),
      frozen={"teacher": frozen},
      **fields,
    )

  return make


def names(rounds):
  return [round_.name for round_ in rounds]


def test_rounds_halve_and_each_teaches_the_next(stage):
  rounds = stage(start_steps=32).rounds({"teacher": "teacher"})
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


@pytest.mark.parametrize(
  ("long_rounds", "lengths"),
  [(0, [10, 10, 10]), (1, [10, 10, 20]), (2, [10, 20, 20]), (4, [20, 20, 20])],
)
def test_the_last_rounds_are_twice_as_long(stage, long_rounds, lengths):
  rounds = stage(start_steps=8, long_rounds=long_rounds).rounds(
    {"teacher": "teacher"}
  )
  assert [r.num_updates for r in rounds] == lengths


def test_rounds_end_where_they_are_told(stage):
  rounds = stage(start_steps=24, end_steps=3).rounds({"teacher": "teacher"})
  assert names(rounds) == ["halve/012", "halve/006", "halve/003"]


def test_a_stage_without_steps_is_one_round_of_its_name(stage):
  (round_,) = stage("tune").rounds({"teacher": "halve/001"})
  assert (round_.name, round_.num_steps, round_.num_updates) == ("tune", 0, 10)


def test_a_stage_may_start_from_the_last_round_of_another(stage):
  first, second = stage(start_steps=4), stage("tune", frozen="halve")
  with pytest.raises(ValueError, match="'teacher', which is no earlier stage"):
    curriculum((first, second))
  rounds = second.rounds({"halve": first.rounds({"teacher": "t"})[-1].name})
  assert rounds[0].frozen == {"teacher": "halve/001"}


def test_a_stage_may_not_come_before_what_it_is_frozen_from(stage):
  with pytest.raises(ValueError, match=r"the earlier ones are none$"):
    curriculum((stage(frozen="halve", start_steps=4),))


@pytest.mark.parametrize(
  ("start", "end"), [(24, 1), (1, 1), (2, 4), (8, 0), (8, -1), (12, 8)]
)
def test_refuses_steps_that_do_not_halve(stage, start, end):
  with pytest.raises(
    ValueError, match=f"start_steps={start} to end_steps={end}; pass a start"
  ):
    stage(start_steps=start, end_steps=end)


@pytest.mark.parametrize("field", ["num_updates", "batch_size"])
def test_refuses_nothing_to_do(stage, field):
  with pytest.raises(ValueError, match=rf"stages\.halve\.{field} is 0; pass 1"):
    stage(**{field: 0})


def test_refuses_parts_that_do_not_divide_the_batch(stage):
  with pytest.raises(ValueError, match="accumulate=3 does not divide"):
    stage(optimizer=Optimizer(learning_rate=0.1, accumulate=3))


@pytest.mark.parametrize("frozen", [{}, {"teacher": "t", "classifier": "c"}])
def test_frozen_names_are_what_the_objective_needs(least_squares, frozen):
  with pytest.raises(ValueError, match=r"needs exactly \['teacher'\]"):
    Stage(
      name="halve",
      objective=least_squares(),
      optimizer=OPTIMIZER,
      num_updates=1,
      batch_size=1,
      frozen=frozen,
    )


def test_codes_are_distinct_and_do_not_change(stage):
  rounds = stage(start_steps=1024).rounds({"teacher": "teacher"})
  codes = [round_.code for round_ in rounds]
  assert len(set(codes)) == 10
  assert all(0 <= code < 2**31 for code in codes)
  # A run that began with other keys and data order would not go on as it was.
  assert dict(zip(names(rounds), codes, strict=True))["halve/004"] == (
    2139373561
  )


def test_only_an_objective_of_rounds_has_steps(least_squares):
  fields = {
    "name": "teacher",
    "optimizer": OPTIMIZER,
    "num_updates": 1,
    "batch_size": 8,
    "frozen": {"teacher": "teacher"},
  }
  with pytest.raises(ValueError, match="has no rounds; remove it"):
    Stage(objective=least_squares(), start_steps=8, **fields)
  with pytest.raises(ValueError, match="start_steps=0 to end_steps=1"):
    Stage(objective=least_squares(halves=True), **fields)
