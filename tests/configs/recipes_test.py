"""Every recipe builds as it is, says what it is, and refuses other names."""

import re

import pytest

from diffdistill.run.model_section import num_parameters
from tests.configs.given import MODULES, RECIPES


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_builds_as_it_is(name, recipe, built_as_it_is):
  built = built_as_it_is(name, recipe)
  # The batches of the papers can be divided by 8 chips.
  assert all(stage.batch_size % 8 == 0 for stage in built.stages)
  # The evaluation must have the steps of every student, or its table lacks one.
  steps = {round_.num_steps for _, round_ in built.rounds.values()}
  assert min(steps - {0}) in built.evaluation.num_steps
  said = re.search(r"of ([\d.]+)M", MODULES[name].RECIPES[recipe])
  if said:
    millions = num_parameters(built.denoiser.network) / 1e6
    assert f"{millions:.1f}" == said[1]


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_a_warm_up_of_small_data_keeps_its_share_of_a_shortened_stage(name):
  config = MODULES[name].get_config("all")
  for stage in config.stages.values():
    sections = [stage.get(name, {}) for name in ("optimizer", "objective")]
    warming = [section for section in sections if "warmup" in section]
    warmups = [section.warmup for section in warming]
    if warming:
      length = stage.num_updates
      stage.num_updates = length // 10
      for section, warmup in zip(warming, warmups, strict=True):
        assert section.warmup == length // 10 * warmup // length
  # A warm-up that is set by hand is not changed.
  config.stages.teacher.optimizer.warmup = 7
  config.stages.teacher.num_updates = 50
  assert config.stages.teacher.optimizer.warmup == 7


@pytest.mark.parametrize("name", MODULES)
def test_an_unknown_recipe_is_refused(name):
  with pytest.raises(ValueError, match="recipe is 'nope'; pass one of ") as e:
    MODULES[name].get_config("nope")
  for recipe in MODULES[name].RECIPES:
    assert recipe in str(e.value)
  assert MODULES[name].get_config().to_dict() == (
    MODULES[name].get_config(next(iter(MODULES[name].RECIPES))).to_dict()
  )


@pytest.mark.parametrize("name", MODULES)
def test_a_config_states_its_command_and_its_deviations(name):
  text = MODULES[name].__doc__
  assert f" {name}:" in text or f"--config={name}:" in text
  for recipe in re.findall(rf"\b{name}:(\w+)", text):
    assert recipe in MODULES[name].RECIPES
  assert "\nDeviations" in text or "Everything is [ours]" in text
