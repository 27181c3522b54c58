"""Every recipe builds as it is, and trains when shrunken.

Data is random and of the right kind; shapes are traced, not computed, but for
the newcomer's teacher, which really takes a step.
"""

import copy
import dataclasses
import importlib
import pathlib
import re

import jax
import numpy as np
import pytest

from diffdistill import experiment
from diffdistill.training.sharding import (
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import create_state
from diffdistill.training.step import make_update

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
MODULES = {
  path.stem: module
  for path in sorted(FOLDER.glob("*.py"))
  for module in [importlib.import_module(f"configs.{path.stem}")]
  if hasattr(module, "get_config")
}
RECIPES = [
  (name, recipe)
  for name, module in MODULES.items()
  for recipe in module.RECIPES
]
# Of the data sources whose images are as they are, the size and the channels.
NATIVE = {"digits": (8, 1), "idx": (28, 1)}
NUM_CLASSES = {"imagenet2012": 1000}


@pytest.fixture(scope="module")
def with_random_data(tmp_path_factory):
  """Replaces a config's source by ten images of this size."""

  def replace(config, size):
    source = config.data.source
    channels = NATIVE.get(source.kind, (None, source.get("channels", 3)))[1]
    path = tmp_path_factory.mktemp("data") / "random.npz"
    last = NUM_CLASSES.get(source.get("name"), 10) - 1
    np.savez(
      path,
      image=np.random.default_rng(0).integers(
        0, 256, (10, size, size, channels), dtype=np.uint8
      ),
      label=np.linspace(0, last, 10).astype(int),
    )
    with config.unlocked():
      config.data.source = {"kind": "npz", "path": str(path), "split": "train"}

  return replace


def native_size(config):
  """The side of the images that a config trains on."""
  source = config.data.source
  return source.get("image_size") or NATIVE[source.kind][0]


def shrunken(config):
  """(a config of two levels at most, with as few of all else, image size).

  Attention stays at the levels where it was.
  """
  config = copy.deepcopy(config)
  network = config.model.network
  patch, levels = network.get("patch", 1), min(len(network.multipliers), 2)
  size = patch * 2**levels
  network.attention = tuple(
    size // patch // 2**level
    for level in range(levels)
    if native_size(config) // patch // 2**level in network.get("attention", ())
  )
  network.multipliers = network.multipliers[:levels]
  network.channels, network.num_blocks = 8, 1
  for name in ("head_dim", "embed_dim"):
    if name in network:
      network[name] = 8
  if "classifier" in config:
    config.classifier.channels = 4
    config.classifier.multipliers = (1,)
    config.classifier.num_blocks = 1
  for stage in config.stages.values():
    stage.num_updates, stage.batch_size = 1, 8
    if "start_steps" in stage:
      stage.start_steps = 2
  return config, size


def steps(built, take):
  """Takes the first update of each stage by `take`; (stage name, result)."""
  products = {}
  for stage in built.stages:
    frozen = {n: products[source] for n, source in stage.frozen.items()}
    batch = built.batches(stage.batch_size, 0).batch(0)
    result = take(stage, frozen, shard_batch(batch, built.mesh))
    products[stage.name] = result[0].params[stage.objective.trains[0]]
    yield stage.name, result


def start_and_update(stage, mesh):
  """(key -> state, update) of a stage's first trained tree, uncompiled."""

  def init(key, frozen):
    return create_state(stage.objective, stage.optimizer, key, frozen)

  def update_for(shapes):
    name = stage.objective.trains[0]
    shardings = tree_shardings(shapes, mesh)
    return make_update(stage.objective, name, stage.optimizer, shardings, mesh)

  return init, update_for


def hparams():
  return {
    "num_steps": np.int32(1),
    "learning_rate": np.float32(0.1),
    "step": np.int32(0),
  }


def build_on_one_device(config, mesh_of):
  return dataclasses.replace(experiment.build(config), mesh=mesh_of(1))


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_builds_as_it_is(name, recipe, with_random_data):
  config = MODULES[name].get_config(recipe)
  with_random_data(config, native_size(config))
  built = experiment.build(config)
  # The papers' batches divide over the chips that people have.
  assert all(stage.batch_size % 8 == 0 for stage in built.stages)
  said = re.search(r"of ([\d.]+)M", MODULES[name].RECIPES[recipe])
  if said:
    shapes = jax.eval_shape(built.denoiser.network.init, jax.random.key(0))
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert f"{millions:.1f}" == said[1]


# A config's other recipes differ in data or in numbers, not in shapes.
@pytest.mark.parametrize("name", MODULES)
def test_a_shrunken_config_has_consistent_shapes(
  name, with_random_data, mesh_of
):
  config, size = shrunken(MODULES[name].get_config())
  config.run = ("teacher", "halve")
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  key = jax.random.key(0)

  def take(stage, frozen, batch):
    init, update_for = start_and_update(stage, built.mesh)
    state = jax.eval_shape(init, key, frozen)
    update = update_for(state)
    return (*update.eval_shape(state, frozen, batch, key, hparams()), state)

  for stage, (state, metrics, before) in steps(built, take):
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), state)
    ), stage
    assert any(metric.endswith("/loss") for metric in metrics)


@pytest.mark.slow
def test_the_newcomer_s_teacher_takes_a_step(with_random_data, mesh_of):
  config, size = shrunken(MODULES["digits"].get_config())
  # The others' steps are taken by the tests of the commands.
  config.run = ("teacher",)
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  place = replicated(built.mesh)
  key, inputs = jax.device_put((jax.random.key(0), hparams()), place)
  random = np.random.default_rng(0)

  def take(stage, frozen, batch):
    init, update_for = start_and_update(stage, built.mesh)
    # Random weights: to compile `init` would take as long as all the rest.
    shapes = jax.eval_shape(init, key, frozen)
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    params = jax.tree.map(
      lambda s: random.normal(scale=0.1, size=s.shape).astype(s.dtype),
      shapes.params,
    )
    state, before = state.replace(params=params), params
    return (*update_for(state)(state, frozen, batch, key, inputs), before)

  for stage, (state, metrics, before) in steps(built, take):
    (name,) = before
    loss = metrics[f"{name}/loss"]
    assert np.isfinite(float(loss[0])), stage
    changed = jax.tree.map(
      lambda a, b: not np.array_equal(a, b), before, state.params
    )
    assert any(jax.tree.leaves(changed)), stage
    assert int(state.step) == 1


@pytest.mark.parametrize("name", MODULES)
def test_a_recipe_that_is_not_there_is_refused(name):
  with pytest.raises(ValueError, match="recipe is 'nope'; pass one of ") as e:
    MODULES[name].get_config("nope")
  for recipe in MODULES[name].RECIPES:
    assert recipe in str(e.value)
  assert MODULES[name].get_config().to_dict() == (
    MODULES[name].get_config(next(iter(MODULES[name].RECIPES))).to_dict()
  )


@pytest.mark.parametrize("name", MODULES)
def test_a_config_says_how_to_run_it(name):
  text = MODULES[name].__doc__
  assert f"configs/{name}.py:" in text
  for recipe in re.findall(rf"configs/{name}\.py:(\w+)", text):
    assert recipe in MODULES[name].RECIPES
