import copy

import pytest

from diffdistill.evaluation.speeds import rounded
from diffdistill.run import from_config
from diffdistill.tools.timing import benchmark


@pytest.fixture(scope="module")
def run(tiny_config):
  return from_config.build(tiny_config)


def measure(run, name, profile=None):
  return benchmark(
    run, name, num_updates=3, turns=2, num_steps=(1, 4), profile=profile
  )


def as_speed(row, what):
  """The speed in images per second of updates of 8 images, rounded."""
  seconds = (
    row[f"{what}_seconds_per_update{end}"] for end in ("", "_most", "_least")
  )
  names = ("x", "x_least", "x_most")
  return rounded({n: 8 / s for n, s in zip(names, seconds, strict=True)})["x"]


def test_loop_and_bare_update_are_both_timed(run):
  made = measure(run, "teacher")
  assert made["turns"] == 2
  (result,) = made["stages"]
  loop, bare = (result[f"{k}_seconds_per_update"] for k in ("loop", "bare"))
  assert bare > 0
  assert loop > 0
  assert result["images_per_second"] == as_speed(result, "loop")
  least, most = (result[f"share_of_bare_{k}"] for k in ("least", "most"))
  assert least <= result["share_of_bare"] <= most


def test_a_stage_that_needs_weights_is_timed_without_its_loop(run):
  (result,) = measure(run, "halve")["stages"]
  assert "loop_seconds_per_update" not in result
  update, passes = (
    result[f"{k}_seconds_per_update"] for k in ("bare", "passes")
  )
  assert update > 0
  assert passes > 0
  least, most = (result[f"update_over_passes_{k}"] for k in ("least", "most"))
  assert least <= result["update_over_passes"] <= most


def test_a_stage_that_trains_nothing_is_refused(run):
  with pytest.raises(
    ValueError, match=r"stage is 'pairs'; pass one of teacher, halve"
  ):
    measure(run, "pairs")


@pytest.mark.slow
def test_every_stage_is_timed_and_its_operations_are_counted(run):
  made = measure(run, None)
  assert [row["stage"] for row in made["stages"]] == ["teacher", "halve"]
  for row in made["stages"]:
    seconds = row["bare_seconds_per_update"]
    least, most = (
      row[f"bare_seconds_per_update_{k}"] for k in ("least", "most")
    )
    assert least <= seconds <= most
    assert row["bare_images_per_second"] == as_speed(row, "bare")
    assert row["flops_per_second"] == row["flops_per_update"] / seconds
    assert row["share_of_peak"] is None  # nobody knows a CPU's peak of FLOP/s
  teacher, student = (row["flops_per_update"] for row in made["stages"])
  # A student's update has two passes of the teacher more: 5 passes, not 3.
  assert student == pytest.approx(teacher * 5 / 3, rel=0.15)


@pytest.mark.slow
def test_derivatives_along_the_input_are_timed_as_bare_passes(tiny_config):
  config = copy.deepcopy(tiny_config)
  config["model"]["network"]["two_times"] = True
  # The sampler and the units of an update, as docs/papers.md has them.
  students = {
    "flow_map": ("flow_map", 7),
    "mean_flow": ("flow_map", 5),
    "scm_distillation": ("renoising", 6),
  }
  for kind, (sampler, _) in students.items():
    stage = {**config["stages"]["halve"], "num_steps": (1,)}
    del stage["start_steps"], stage["long_rounds"]
    stage["objective"], stage["sampler"] = {"kind": kind}, {"kind": sampler}
    config["stages"][kind] = stage
  config["run"] = ("teacher", *students)
  teacher, *rows = measure(from_config.build(config), None)["stages"]
  for row, (_, units) in zip(rows, students.values(), strict=True):
    assert row["passes_seconds_per_update"] > 0
    assert row["update_over_passes_least"] > 0
    ratio = row["flops_per_update"] / teacher["flops_per_update"]
    assert ratio == pytest.approx(units / 3, rel=0.25)


def test_the_sampler_is_timed_at_each_number_of_steps(run):
  one, four = measure(run, "teacher")["sampling"]
  assert (one["num_steps"], four["num_steps"]) == (1, 4)
  for row in (one, four):
    least, most = (row[f"images_per_second_{k}"] for k in ("least", "most"))
    assert 0 < least <= row["images_per_second"] <= most
    assert (row["timed_batches"], row["timed_batch_size"]) == (2, 504)


@pytest.mark.slow
def test_a_profile_is_written_for_each_stage(run, tmp_path):
  measure(run, "teacher", tmp_path)
  assert list((tmp_path / "teacher").rglob("*.xplane.pb"))
