"""Tests that the curriculum finds each stage's inputs or refuses them."""

import dataclasses

import pytest

from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.sampling.ddim import DDIM
from diffdistill.training.curriculum import check_judges, curriculum
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.selection_by_score import Selection
from diffdistill.training.training_stage import Training

SAMPLER = DDIM(process=GaussianProcess(schedule=Cosine()))


@pytest.fixture
def stage(least_squares):
  """The function stage(...) makes a stage that trains on images."""

  def make(name, rounds="one", consumes="images", frozen=None, **fields):
    frozen = {} if frozen is None else frozen
    return Training(
      name=name,
      objective=least_squares(
        rounds=rounds,
        consumes=consumes,
        given=dict.fromkeys(frozen, "denoiser"),
        sampler=SAMPLER,
      ),
      optimizer=Optimizer(learning_rate=0.1),
      frozen=frozen,
      **{"num_updates": 10, "batch_size": 8, **fields},
    )

  return make


@pytest.fixture
def teacher(stage):
  return stage("teacher")


@pytest.fixture
def classifier(least_squares):
  class Classifier(least_squares):
    @property
    def product(self):
      return "classifier"

  return Training(
    name="judge",
    objective=Classifier(given={}),
    optimizer=Optimizer(learning_rate=0.1),
    num_updates=10,
    batch_size=8,
  )


@pytest.fixture
def student(stage):
  """The function student(...) makes a stage that learns from a teacher."""

  def make(name="halve", source="teacher", rounds="halving", **fields):
    if rounds == "halving":
      fields = {"start_steps": 8, **fields}
    return stage(name, rounds, frozen={"teacher": source}, **fields)

  return make


@pytest.fixture
def pairs():
  def make(source="teacher", **fields):
    return Pairs(
      name="pairs",
      sampler=SAMPLER,
      frozen={"teacher": source},
      **{
        "num_steps": 4,
        "num_pairs": 32,
        "held_out": 16,
        "shard_size": 8,
        "batch_size": 8,
        **fields,
      },
    )

  return make


@pytest.fixture
def on_pairs(stage):
  def make(source="pairs", **fields):
    return stage(
      "student",
      "one_step",
      consumes="pairs",
      pairs=source,
      frozen={"teacher": "teacher"},
      **fields,
    )

  return make


def rounds_of(*stages):
  return {round_.name: round_ for _, round_ in curriculum(stages)}


def refusal(*stages):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (the helper returns its text)
    curriculum(stages)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_rounds_are_in_the_order_of_their_stages(teacher, student, pairs):
  stages = teacher, student(), pairs()
  rounds = curriculum(stages)
  assert [(made.name, round_.name) for made, round_ in rounds] == [
    ("teacher", "teacher"),
    ("halve", "halve/004"),
    ("halve", "halve/002"),
    ("halve", "halve/001"),
    ("pairs", "pairs"),
  ]
  last = rounds[-1][1]
  assert (last.num_updates, last.num_steps) == (0, 0)
  assert last.frozen == {"teacher": "teacher"}


@pytest.mark.parametrize(
  ("source", "round_name"),
  [
    ("teacher", "teacher"),
    ("halve", "halve/001"),
    ("halve/004", "halve/004"),
    ("path:runs/a/teacher", "path:runs/a/teacher"),
  ],
)
def test_weights_come_from_the_named_round_or_a_stage_s_last(
  teacher, student, source, round_name
):
  rounds = rounds_of(teacher, student(), student("tune", source, "one"))
  assert rounds["tune"].frozen == {"teacher": round_name}


@pytest.mark.parametrize(
  ("source", "guided"),
  [
    ("teacher", True),
    ("tuned", True),
    ("path:runs/a/teacher", True),
    ("halve", False),
    ("halve/004", False),
    ("moments/002", False),
  ],
)
def test_a_teacher_is_guided_unless_it_is_a_student(
  teacher, student, pairs, source, guided
):
  stages = (
    teacher,
    student("tuned", rounds="one"),
    student(),
    student("moments", rounds="each", num_steps=(4, 2)),
  )
  steps = {"halve": 1, "halve/004": 4, "moments/002": 2}.get(source, 8)
  for last in (
    pairs(source),
    student("last", source, "each", num_steps=(2, 1)),
    *((student("last", source, start_steps=steps),) if steps > 1 else ()),
  ):
    first, *others = [
      round_ for made, round_ in curriculum((*stages, last)) if made is last
    ]
    assert first.guided == guided
    halved = getattr(last, "start_steps", 0) > 0
    assert all(r.guided == (guided and not halved) for r in others)


def test_weights_must_come_from_an_earlier_stage(teacher, student):
  late = student(), teacher
  assert refusal(*late).endswith(
    "frozen names 'teacher', which is no earlier stage; the earlier ones are"
    " none"
  )
  assert "the earlier ones are teacher, halve/004, halve, halve/" in refusal(
    teacher, student(), student("tune", "halve/016", "one")
  )
  assert "'tune', which is no earlier" in refusal(
    teacher, student("tune", "tune", "one")
  )


def test_weights_of_another_kind_are_refused(
  teacher, classifier, stage, student, pairs
):
  fields = {"start_steps": 4, "rounds": "halving"}
  right = {"teacher": "teacher", "classifier": "judge"}
  assert rounds_of(teacher, classifier, stage("f", frozen=right, **fields))
  for wrong in (
    {"teacher": "judge", "classifier": "judge"},
    {"teacher": "teacher", "classifier": "teacher"},
    {"teacher": "teacher", "second_moments": "judge"},
  ):
    assert "which makes something else; name another stage" in refusal(
      teacher, classifier, stage("f", frozen=wrong, **fields)
    )
  assert "'pairs', which makes something else" in refusal(
    teacher, pairs(), student("halve", "pairs")
  )


def test_second_moments_come_from_the_teacher_s_round(teacher, stage):
  frozen = {"teacher": "teacher", "second_moments": "teacher"}
  rounds = rounds_of(teacher, stage("m", "each", frozen=frozen, num_steps=(2,)))
  assert rounds["m/002"].frozen == frozen


def test_second_moments_of_a_stage_that_trains_nothing_are_refused(
  teacher, stage
):
  given = dataclasses.replace(teacher, source="imported:x")
  frozen = {"teacher": "teacher", "second_moments": "teacher"}
  late = stage("m", "each", frozen=frozen, num_steps=(2,))
  assert "from 'teacher', which trains nothing" in refusal(given, late)


def test_second_moments_of_a_student_are_refused(teacher, student, stage):
  frozen = {"teacher": "teacher", "second_moments": "halve/004"}
  late = stage("m", "each", frozen=frozen, num_steps=(2,))
  assert "only a stage that trains a teacher keeps" in refusal(
    teacher, student(), late
  )


def test_only_a_classifier_may_be_imported_by_frozen(teacher, stage, student):
  frozen = {"teacher": "teacher", "classifier": "imported:a.safetensors"}
  rounds = rounds_of(teacher, stage("f", frozen=frozen))
  assert rounds["f"].frozen == frozen
  assert refusal(teacher, student("halve", "imported:a.pt")) == (
    "stages.halve.frozen imports its teacher from 'imported:a.pt'; give that"
    " to the source of a teacher's stage, and name the stage here"
  )


def test_halving_starts_at_the_steps_of_the_teacher(teacher, student):
  first = student(end_steps=4)
  rounds = rounds_of(teacher, first, student("on", "halve", start_steps=4))
  assert list(rounds) == ["teacher", "halve/004", "on/002", "on/001"]
  assert refusal(teacher, first, student("on", "halve")) == (
    "stages.on.start_steps is 8, but its teacher halve/004 was made for 4"
    " steps; pass start_steps=4"
  )
  # A stage that does not halve the steps may have any number of steps.
  each = student("moments", "halve", "each", num_steps=(8,))
  assert "moments/008" in rounds_of(teacher, first, each)


def test_pairs_must_come_from_an_earlier_stage_of_pairs(
  teacher, pairs, on_pairs
):
  assert "student/001" in rounds_of(teacher, pairs(), on_pairs())
  for stages in (
    (teacher, on_pairs(), pairs()),
    (teacher, pairs(), on_pairs("teacher")),
  ):
    assert "which is no earlier stage of pairs" in refusal(*stages)


@pytest.mark.parametrize("field", ["shard_size", "held_out"])
def test_pairs_that_do_not_fill_batches_are_refused(
  teacher, pairs, on_pairs, field
):
  stages = teacher, pairs(**{field: 4}), on_pairs()
  assert refusal(*stages) == (
    f"stages.pairs.{field} is 4, which stages.student.batch_size=8 does not"
    " divide; pass a multiple of it"
  )


def test_selection_by_held_out_loss_needs_held_out_pairs(
  teacher, pairs, on_pairs
):
  select = Selection(by="held_out_loss", every=5)
  stages = teacher, pairs(held_out=0), on_pairs(select=select)
  assert refusal(*stages).endswith("stages.pairs.held_out is 0; pass 8 or more")
  assert rounds_of(teacher, pairs(held_out=0), on_pairs())


def test_selection_by_distance_needs_images_and_a_classifier(
  teacher, classifier, student
):
  select = Selection(by="distance", every=5)
  selected = student(select=select)
  check_judges((classifier, teacher, selected))
  with pytest.raises(ValueError, match="'distance', which needs an earlier"):
    check_judges((teacher, selected, classifier))
  with pytest.raises(ValueError, match="makes no images to select by"):
    dataclasses.replace(classifier, select=select)
