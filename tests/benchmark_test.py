import pytest

from diffdistill import from_config
from diffdistill.benchmark import benchmark


@pytest.fixture(scope="module")
def run(tiny_config):
  return from_config.build(tiny_config)


def test_loop_and_bare_update_take_turns(run):
  result = benchmark(run, "teacher", num_updates=3, turns=2)
  assert result["turns"] == 2
  loop, bare = (result[f"{k}_seconds_per_update"] for k in ("loop", "bare"))
  assert bare > 0
  assert loop > 0
  assert result["images_per_second"] == pytest.approx(8 / loop)
  least, most = (result[f"share_of_bare_{k}"] for k in ("least", "most"))
  assert least <= result["share_of_bare"] <= most


def test_a_stage_that_needs_weights_is_held_against_its_passes_alone(run):
  result = benchmark(run, "halve", num_updates=3, turns=2)
  assert "loop_seconds_per_update" not in result
  update, passes = (
    result[f"{k}_seconds_per_update"] for k in ("bare", "passes")
  )
  assert update > 0
  assert passes > 0
  least, most = (result[f"update_over_passes_{k}"] for k in ("least", "most"))
  assert least <= result["update_over_passes"] <= most


def test_what_trains_nothing_is_refused(run):
  with pytest.raises(
    ValueError, match=r"stage is 'pairs'; pass one of teacher, halve"
  ):
    benchmark(run, "pairs", num_updates=3, turns=2)
