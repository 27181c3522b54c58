"""Students that are compared have the same number of network passes."""

import pytest

from diffdistill.configs import recipes
from tests.configs.given import MODULES, rounds_of, stages_of

# Rounds of halving: their budget is that of all rounds together, and features
# begin in the middle of it.
HALVING = {"halve", "features"}


def passes_of(stage, num_updates):
  """The passes of a student, as the objective counts those of an update."""
  cycle = stage.objective.cycle
  units = [stage.objective.passes(turn, 1, False).units for turn in cycle]
  return num_updates * stage.batch_size * sum(units) / len(units)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_all_students_have_the_budget_of_progressive(name, built_as_it_is):
  built = built_as_it_is(name, "all")
  stages = stages_of(built)
  budget = recipes.passes_of(MODULES[name].get_config("all").stages.halve)
  halved = sum(r.num_updates for r in rounds_of(built, "halve"))
  assert passes_of(stages["halve"], halved) == budget
  spent = {}
  for round_name, (stage, round_) in built.rounds.items():
    if round_.num_steps and stage.name not in HALVING:
      spent[round_name] = passes_of(stage, round_.num_updates)
      if stage.pairs:
        pairs = stages[stage.pairs]
        count = pairs.num_pairs + pairs.held_out
        spent[round_name] += pairs.num_steps * count
  # An update of a batch of 64 has a few hundred passes.
  assert spent == {name: pytest.approx(budget, abs=250) for name in spent}
  assert {name.partition("/")[0] for name in spent} == {
    *("moments", "parameter_moments", "denoising_student", "consistency"),
    *("easy_consistency", "multistep", "reflow", "scm_distillation"),
    *("flow_map", "mean_flow"),
  }
