"""Every recipe trains in a small form, as far as its shapes show.

The data is random and of the right kind. Updates are traced, not computed.
"""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from diffdistill.objectives.objective import Now, product_tree
from diffdistill.run import from_config
from diffdistill.training.sharding import Layout, tree_shardings
from diffdistill.training.state import create_state
from diffdistill.training.step import make_update
from tests.configs.given import MODULES, RECIPES, rounds_of, stages_of

BATCH = 8


@pytest.fixture(scope="module")
def states():
  """The states of the stages that are traced already; recipes share stages."""
  return {}


def shrunken(config):
  """Makes a small config of the same recipe.

  Another test checks on the full config that levels and attention fit. Numbers
  that no shape depends on are made alike, so that more recipes share stages.

  Returns:
    The config, and the side of its images.
  """
  config = copy.deepcopy(config)
  network = config.model.network
  if "shift_from" in config.model.schedule:
    config.model.schedule.shift_from = 0
  if network.kind == "uvit":
    network.channels, network.num_blocks = (8, 8), (1, 1)
    network.conv_stages, network.dropout = 1, (0.0, 0.1)
  else:
    network.multipliers, network.attention = (1,), ()
    network.channels, network.num_blocks = 8, 1
  for name, most in (("head_dim", 8), ("embed_dim", 8), ("patch", 2)):
    if name in network:
      network[name] = min(network[name], most)
  for section in (config, *config.stages.values()):
    if "classifier" in section:
      section.classifier.channels = 4
      section.classifier.multipliers = (1,)
      section.classifier.num_blocks = 1
      section.classifier.dropout = 0.1
  for stage in config.stages.values():
    stage.batch_size = BATCH
    if stage.get("kind") == "pairs":
      stage.num_pairs = stage.held_out = stage.shard_size = BATCH
    elif "crop" in stage.objective:
      stage.objective.crop = 0
  return config, 2 * network.get("patch", 1)


def build_on_one_device(config, mesh_of):
  return dataclasses.replace(
    from_config.build(config), layout=Layout(mesh=mesh_of(1))
  )


def scalars(objective, round_):
  """The arguments `now` and `rates` of the first update of a round."""
  now = Now(
    num_steps=np.int32(round_.num_steps),
    guided=np.float32(round_.guided),
    step=np.int32(0),
    progress=np.float32(0),
  )
  return now, dict.fromkeys(objective.trees, np.float32(0.1))


def traced_pairs(built, stage, teacher):
  """The shapes of a batch of the pairs that a teacher makes."""
  generator = built.generator(stage.sampler, BATCH, guidance=stage.guidance)
  shape = jax.ShapeDtypeStruct
  noise = shape((BATCH, *generator.image_shape), np.float32)
  label = shape((BATCH,), np.int32) if generator.num_classes else None
  image = jax.eval_shape(
    generator.sample, teacher, noise, label, jax.random.key(0), np.int32(2)
  )
  batch = {
    "noise": shape(noise.shape, np.float16),
    "image": shape(image.shape, np.uint8),
    "label": label,
  }
  return {name: rows for name, rows in batch.items() if rows is not None}


def structure(thing):
  """The parts that a trace depends on; of a float, whether it is above 0."""
  if isinstance(thing, float):
    return thing > 0
  if isinstance(thing, tuple):
    return tuple(map(structure, thing))
  if dataclasses.is_dataclass(thing):
    names = [field.name for field in dataclasses.fields(thing)]
    return type(thing), *(structure(getattr(thing, name)) for name in names)
  return thing


def traced_updates(built, states):
  """Traces one update of every turn of every stage.

  All rounds of a stage have the same shapes, so only the first is traced. A
  stage whose state is among `states` is not traced again.

  Yields:
    The name of the trained tree, the state before and after the update, and
    the metrics.
  """
  key, products = jax.random.key(0), {}
  for stage in built.stages:
    first, *others = rounds_of(built, stage.name)
    frozen = {name: products[made] for name, made in first.frozen.items()}
    if stage.makes == "pairs":
      products[stage.name] = traced_pairs(built, stage, frozen["teacher"])
      continue
    batch = built.batches(BATCH, 0).batch(0)
    if stage.objective.consumes == "pairs":
      batch = products[stage.pairs]
    objective, optimizers = stage.objective, stage.all_optimizers
    # Learning rates are arguments of an update, so no trace depends on them.
    optimizer = dataclasses.replace(stage.optimizer, warmup=0, decay="constant")
    what = structure((objective, optimizer))
    if what not in states:
      state = states[what] = jax.eval_shape(
        functools.partial(create_state, objective, optimizers), key, frozen
      )
      needed = {name: frozen[name] for name in objective.needs}
      shardings = tree_shardings(state, built.layout)
      for turn in dict.fromkeys(objective.cycle):
        update = make_update(objective, turn, optimizers, shardings, built.mesh)
        after, metrics = update.eval_shape(
          state, needed, batch, key, *scalars(objective, first)
        )
        yield turn[0], state, after, metrics
    for round_ in (first, *others):
      products[round_.name] = states[what].params[product_tree(objective)]


def marks(name, recipe):
  """Tracing takes seconds for each stage, so most recipes are slow."""
  quick = name == "digits" and recipe != "all"
  return () if quick else pytest.mark.slow


# folder.py is left out: its stages are those of digits.py in other sizes. So is
# the quarter of an hour, which quarter_hour_test.py trains.
@pytest.mark.parametrize(
  ("name", "recipe"),
  [
    pytest.param(*each, marks=marks(*each))
    for each in RECIPES
    if each[0] != "folder" and each[1] != "quarter_hour"
  ],
)
def test_a_shrunken_recipe_has_consistent_shapes(
  name, recipe, with_random_data, mesh_of, states
):
  config, size = shrunken(MODULES[name].get_config(recipe))
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  for tree, before, after, metrics in traced_updates(built, states):
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), after)
    )
    assert f"{tree}/loss" in metrics


@pytest.mark.slow
def test_a_teacher_of_moments_can_be_guided(with_random_data, mesh_of, states):
  config, size = shrunken(MODULES["imagenet64"].get_config("moment_matching"))
  config.guidance.weight = 0.1
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  assert all(r.guided for r in rounds_of(built, "moments"))
  # In the update of each tree, the teacher runs with and without labels.
  objective = stages_of(built)["moments"].objective
  assert objective.passes(("student",), 8, guided=True).forward == 3
  trees = [tree for tree, *_ in traced_updates(built, states)]
  assert trees[-2:] == ["auxiliary", "student"]
