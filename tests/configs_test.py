"""Every recipe builds as it is, and trains in a small form.

Data is random and of the right kind. Shapes are traced, not computed; only the
newcomer's teacher really takes a step. Published settings are repeated here, so
that a typing error in a recipe is noticed.
"""

import copy
import dataclasses
import functools
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.data.pair_set import PairSet
from diffdistill.diffusion.schedule import LinearBeta, Shifted
from diffdistill.objectives.objective import Now, product_tree
from diffdistill.run import from_config
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from diffdistill.training.sharding import (
  Layout,
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
  for module in [importlib.import_module(f"diffdistill.configs.{path.stem}")]
  if hasattr(module, "get_config")
}
RECIPES = [
  (name, recipe)
  for name, module in MODULES.items()
  for recipe in module.RECIPES
]
# The size and the channels of data sources that do not resize.
NATIVE = {"digits": (8, 1), "idx": (28, 1)}
NUM_CLASSES = {"imagenet2012": 1000}
BATCH = 8


@pytest.fixture(scope="module")
def with_random_data(tmp_path_factory):
  """Replaces the source of a config by ten images of a size."""

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


@pytest.fixture(scope="module")
def built_as_it_is(with_random_data):
  """The experiment of a (file, recipe), built once."""

  @functools.cache
  def build(name, recipe):
    config = MODULES[name].get_config(recipe)
    with_random_data(config, native_size(config))
    return from_config.build(config)

  return build


@pytest.fixture(scope="module")
def seen():
  """The updates that are traced already, because recipes share stages."""
  return set()


def native_size(config):
  """The side of the images that a config trains on."""
  source = config.data.source
  return source.get("image_size") or NATIVE[source.kind][0]


def shrunken(config):
  """(A small config of the same recipe, the size of its images).

  Another test checks on the full config that levels and attention fit.
  """
  config = copy.deepcopy(config)
  network = config.model.network
  if network.kind == "uvit":
    network.channels, network.num_blocks = (8, 8), (1, 1)
    network.conv_stages, network.dropout = 1, network.dropout[-2:]
  else:
    network.multipliers, network.attention = (1,), ()
    network.channels, network.num_blocks = 8, 1
  for name in ("head_dim", "embed_dim"):
    if name in network:
      network[name] = 8
  if "classifier" in config:
    config.classifier.channels = 4
    config.classifier.multipliers = (1,)
    config.classifier.num_blocks = 1
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


def start_and_update(stage, mesh):
  """(Function from key to state, function from (shapes, turn) to update)."""

  def init(key, frozen):
    return create_state(stage.objective, stage.all_optimizers, key, frozen)

  def update_for(shapes, turn):
    shardings = tree_shardings(shapes, Layout(mesh=mesh))
    return make_update(
      stage.objective, turn, stage.all_optimizers, shardings, mesh
    )

  return init, update_for


def scalars(objective, round_):
  """The (now, rates) of the first update of a round."""
  now = Now(
    num_steps=np.int32(round_.num_steps),
    guided=np.float32(round_.guided),
    step=np.int32(0),
    progress=np.float32(0),
  )
  return now, dict.fromkeys(objective.trees, np.float32(0.1))


def rounds_of(built, stage_name):
  return [r for s, r in built.rounds.values() if s.name == stage_name]


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


def traced_updates(built, seen):
  """The (trained name, state before, state after, metrics) of every tree.

  Only the first round of each stage is traced, since the others have the same
  shapes. Updates in `seen` are left out; new ones are added to it.
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
    init, update_for = start_and_update(stage, built.mesh)
    state = jax.eval_shape(init, key, frozen)
    objective = stage.objective
    needed = {name: frozen[name] for name in objective.needs}
    for turn in objective.cycle:
      what = (turn, objective, stage.optimizer)
      if what in seen:
        continue
      after, metrics = update_for(state, turn).eval_shape(
        state, needed, batch, key, *scalars(objective, first)
      )
      yield turn[0], state, after, metrics
      seen.add(what)
    for round_ in (first, *others):
      products[round_.name] = state.params[product_tree(objective)]


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
    shapes = jax.eval_shape(built.denoiser.network.init, jax.random.key(0))
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert f"{millions:.1f}" == said[1]


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_shrunken_recipe_has_consistent_shapes(
  name, recipe, with_random_data, mesh_of, seen
):
  config, size = shrunken(MODULES[name].get_config(recipe))
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  for tree, before, after, metrics in traced_updates(built, seen):
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), after)
    )
    assert f"{tree}/loss" in metrics


def test_a_teacher_of_moments_can_be_guided(with_random_data, mesh_of):
  config, size = shrunken(MODULES["imagenet64"].get_config("moment_matching"))
  config.guidance.weight = 0.1
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  assert all(r.guided for r in rounds_of(built, "moments"))
  # In the update of each tree, the teacher runs with and without labels.
  objective = stages_of(built)["moments"].objective
  assert objective.passes(("student",), 8, guided=True).forward == 3
  trees = [tree for tree, *_ in traced_updates(built, set())]
  assert trees == ["classifier", "teacher", "auxiliary", "student"]


@pytest.mark.slow
def test_the_newcomer_s_teacher_takes_a_step(with_random_data, mesh_of):
  config, size = shrunken(MODULES["digits"].get_config())
  # Tests of the commands take steps of the other stages.
  config.run = ("teacher",)
  with_random_data(config, size)
  built = build_on_one_device(config, mesh_of)
  (stage,) = built.stages
  (round_,) = rounds_of(built, "teacher")
  init, update_for = start_and_update(stage, built.mesh)
  key, now, rates = jax.device_put(
    (jax.random.key(0), *scalars(stage.objective, round_)),
    replicated(built.mesh),
  )
  # Random weights are fast; to compile `init` would take long.
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(init, key, {})
  state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  before = jax.tree.map(
    lambda s: random.normal(scale=0.1, size=s.shape).astype(s.dtype),
    shapes.params,
  )
  state, metrics = update_for(shapes, ("teacher",))(
    dataclasses.replace(state, params=before),
    {},
    shard_batch(built.batches(BATCH, 0).batch(0), built.mesh),
    key,
    now,
    rates,
  )
  assert np.isfinite(float(metrics["teacher/loss"][0]))
  changed = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), before, state.params
  )
  assert any(jax.tree.leaves(changed))
  assert int(state.step) == 1


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_a_warm_up_of_small_data_keeps_its_share_of_a_shortened_stage(name):
  config = MODULES[name].get_config("all")
  for stage in config.stages.values():
    if "warmup" in stage.get("optimizer", {}):
      length, warmup = stage.num_updates, stage.optimizer.warmup
      stage.num_updates = length // 10
      assert stage.optimizer.warmup == length // 10 * warmup // length
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


def has(thing, **wanted):
  assert {name: getattr(thing, name) for name in wanted} == wanted


def stages_of(built):
  return {stage.name: stage for stage in built.stages}


@pytest.mark.parametrize(
  ("name", "recipe", "teacher", "student", "batch_size", "start", "updates"),
  [
    # The last number is the updates of all rounds (Salimans & Ho 2022, 5.2).
    ("cifar10", "progressive", 2e-4, 5e-5, 128, 8192, 750_000),
    ("imagenet64", "progressive", 3e-4, 1e-4, 2048, 1024, 600_000),
    ("lsun", "bedroom", 3e-4, 1e-4, 2048, 1024, 600_000),
    ("lsun", "church", 3e-4, 1e-4, 2048, 1024, 600_000),
  ],
)
def test_progressive_is_as_published(
  name, recipe, teacher, student, batch_size, start, updates, built_as_it_is
):
  built = built_as_it_is(name, recipe)
  stages = stages_of(built)
  has(stages["teacher"], batch_size=batch_size)
  has(
    stages["teacher"].optimizer,
    learning_rate=teacher,
    warmup=1000,
    decay="constant",
    weight_decay=1e-3 if name == "cifar10" else 0.0,
    clip=1.0,
    ema_decay=0.9999,
  )
  has(stages["teacher"].objective, weighting="truncated_snr", discrete_steps=0)
  has(stages["halve"], batch_size=batch_size)
  has(stages["halve"].objective, weighting="truncated_snr")
  has(
    stages["halve"].optimizer,
    learning_rate=student,
    warmup=0,
    decay="linear",
    b1=0.9,
    b2=0.999,
    weight_decay=0.0,
    clip=1.0,
    ema_decay=0.0,
  )
  rounds = rounds_of(built, "halve")
  assert rounds[0].name == f"halve/{start // 2}"
  assert rounds[0].frozen == {"teacher": "teacher"}
  assert rounds[-1].name == "halve/001"
  assert sum(round_.num_updates for round_ in rounds) == updates
  assert [round_.num_updates for round_ in rounds[-3:]] == [
    50_000,
    100_000,
    100_000,
  ]


def test_classifier_features_are_as_published(built_as_it_is):
  built = built_as_it_is("cifar10", "classifier_features")
  stages = stages_of(built)
  has(stages["teacher"], num_updates=800_000, batch_size=128)
  has(
    stages["teacher"].objective, weighting="truncated_snr", discrete_steps=1024
  )
  has(
    stages["teacher"].optimizer,
    learning_rate=2e-4,
    warmup=5000,
    weight_decay=0.0,
    ema_decay=0.9999,
  )
  for name in ("halve", "features"):
    has(stages[name], batch_size=128)
    has(
      stages[name].optimizer,
      learning_rate=5e-5,
      warmup=0,
      decay="cosine",
      weight_decay=0.0,
      clip=1.0,
      ema_decay=0.0,
    )
  has(
    stages["features"].objective,
    temperature=0.95,
    dataset_weight=0.003,
    entropy_share=0.75,
  )
  halved = rounds_of(built, "halve")
  assert [r.num_steps for r in halved] == [512, 256, 128, 64, 32, 16, 8]
  assert {r.num_updates for r in halved} == {10_000}
  assert [
    (r.name, r.num_updates, r.frozen) for r in rounds_of(built, "features")
  ] == [
    (name, updates, {"teacher": teacher, "classifier": "expert"})
    for name, updates, teacher in (
      ("features/004", 10_000, "halve/008"),
      ("features/002", 20_000, "features/004"),
      ("features/001", 20_000, "features/002"),
    )
  ]
  # The classifier that judges is not the one that taught a student.
  assert next(iter(built.rounds)) == "classifier"


QUADRATIC = {"grid": "quadratic_indices", "first_time": 0.801, "clip": False}
UNIFORM = {"grid": "uniform_indices", "first_time": 0.981, "clip": False}
SMALL = {"b1": 0.9, "b2": 0.98, "ema_decay": 0.995, "warmup": 5000}
LARGE = {"b1": 0.98, "b2": 0.999, "ema_decay": 0.9995, "warmup": 1000}
LSUN = {
  "sampler": UNIFORM,
  "indices": np.arange(0, 1000, 20),
  "pairs": {"num_steps": 50, "shard_size": 2560, "held_out": 2560},
  "shards": 400,
  "norm": "l2",
  "optimizer": {"learning_rate": 5e-6, **LARGE},
}
DENOISING_STUDENTS = {
  ("cifar10", "denoising_student"): {
    "sampler": QUADRATIC,
    "indices": np.floor(np.linspace(0, 800**0.5, 100) ** 2),
    "pairs": {"num_steps": 100, "shard_size": 102_400, "held_out": 51_200},
    "shards": 10,
    "norm": "l1",
    "optimizer": {"learning_rate": 2e-4, **SMALL},
    "student": {"batch_size": 512, "num_updates": 50_000},
  },
  ("celeba", "denoising_student"): {
    "sampler": QUADRATIC,
    "indices": np.floor(np.linspace(0, 800**0.5, 100) ** 2),
    "pairs": {"num_steps": 100, "shard_size": 25_600, "held_out": 10_240},
    "shards": 40,
    "norm": "l2",
    "optimizer": {"learning_rate": 5e-5, **SMALL},
    "student": {"batch_size": 512, "num_updates": 70_000},
  },
  ("lsun", "bedroom256"): {
    **LSUN,
    "student": {"batch_size": 32, "num_updates": 1_600_000},
  },
  ("lsun", "church256"): {
    **LSUN,
    "student": {"batch_size": 32, "num_updates": 1_280_000},
  },
}


@pytest.mark.parametrize(("name", "recipe"), DENOISING_STUDENTS)
def test_the_denoising_student_is_as_published(name, recipe, built_as_it_is):
  wanted = DENOISING_STUDENTS[name, recipe]
  built = built_as_it_is(name, recipe)
  stages = stages_of(built)
  pairs, student = stages["pairs"], stages["denoising_student"]
  has(pairs, num_pairs=1_024_000, **wanted["pairs"])
  assert wanted["shards"] * pairs.shard_size == pairs.num_pairs
  assert isinstance(pairs.sampler, DDIM)
  has(pairs.sampler, **wanted["sampler"])
  # The indices at which the released code evaluates the teacher.
  steps = np.arange(pairs.num_steps, 0, -1)
  times = [pairs.sampler.time(int(i), pairs.num_steps) for i in steps]
  indices = 1000 * np.asarray(times) - 1
  np.testing.assert_allclose(indices, wanted["indices"][::-1], atol=1e-3)
  # Students are compared with the same teacher that they learn from.
  assert pairs.sampler == stages["teacher"].objective.sampler
  assert max(built.evaluation.num_steps) == pairs.num_steps
  has(student, **wanted["student"])
  has(student.objective, norm=wanted["norm"])
  has(student.objective.sampler, form="difference")
  has(
    student.optimizer,
    decay="constant",
    eps=1e-8,
    weight_decay=0.0,
    clip=0.0,
    **wanted["optimizer"],
  )
  # Selection takes place at the end of each epoch, or after 80 shards.
  has(student.select, by="held_out_loss")
  shards = min(wanted["shards"], 80)
  assert student.select.every * student.batch_size == shards * pairs.shard_size
  # Batches divide the numbers of pairs, so every batch is whole.
  for count in (pairs.shard_size, pairs.held_out):
    assert count % student.batch_size == count % pairs.batch_size == 0
  has(built.denoiser, output="eps")
  assert built.denoiser.process.schedule == LinearBeta(
    num_steps=1000, beta_min=1e-4, beta_max=0.02
  )
  # At t = 1 the network reads DDPM's index 999.
  scaling = built.denoiser.precondition.scaling(
    built.denoiser.process.schedule, jnp.ones(1)
  )
  np.testing.assert_allclose(1000 * scaling.c_noise, 999, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "recipe"),
  [("celeba", "denoising_student"), ("lsun", "bedroom256")],
)
def test_the_disk_space_of_pairs_is_as_stated(name, recipe, built_as_it_is):
  built = built_as_it_is(name, recipe)
  stage = stages_of(built)["pairs"]
  gigabytes = {}
  for store_noise in (True, False):
    pairs = PairSet(
      teacher="",
      sampler="",
      num_steps=1,
      seed=0,
      image_shape=built.source.image_shape,
      num_pairs=stage.num_pairs,
      held_out=stage.held_out,
      shard_size=stage.shard_size,
      store_noise=store_noise,
    )
    count = stage.num_pairs + stage.held_out
    gigabytes[store_noise] = pairs.num_bytes(count) / 1e9
    said = rf"\b{gigabytes[store_noise]:.0f}\b"
    assert re.search(said, MODULES[name].__doc__)
  if name == "lsun":
    # The README of the authors states 600 GB.
    assert gigabytes[True] == pytest.approx(600, rel=0.01)
    has(stage, store_noise=False, max_gigabytes=100.0)


# The sizes of the U-ViTs in Heek et al. 2024, appendix A.1.
UVITS = {
  "imagenet64": {
    "channels": (256, 512, 1024),
    "num_blocks": (3, 3, 16),
    "conv_stages": 1,
    "dropout": (0.0, 0.0, 0.2),
  },
  "imagenet128": {
    "channels": (128, 256, 512, 1024),
    "num_blocks": (3, 3, 3, 16),
    "conv_stages": 2,
    "dropout": (0.0, 0.0, 0.0, 0.1),
  },
}


@pytest.mark.parametrize(
  ("recipe", "stage_name", "num_steps"),
  [
    ("moment_matching", "moments", (8, 4, 2, 1)),
    ("parameter_moment_matching", "parameter_moments", (8, 4)),
  ],
)
@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "imagenet128"])
def test_moment_matching_is_as_published(
  name, recipe, stage_name, num_steps, built_as_it_is
):
  built = built_as_it_is(name, recipe)
  stage = stages_of(built)[stage_name]
  has(stage.optimizer, b1=0.0, b2=0.99, eps=1e-12)
  has(stage, num_steps=num_steps, num_updates=200_000)
  has(stage.select, by="distance", every=5000)
  assert isinstance(stage.objective.sampler, Ancestral)
  has(stage.objective.sampler, noise=0.0, grid="uniform")
  assert [r.name for r in rounds_of(built, stage_name)] == [
    f"{stage_name}/{n:03d}" for n in num_steps
  ]
  # No round is the student of another round.
  for round_ in rounds_of(built, stage_name):
    assert set(round_.frozen.values()) == {"teacher"}
  if name != "cifar10":
    assert stage.batch_size == 2048
    # Some labels are hidden from the teacher, so that it can be guided.
    assert built.denoiser.null_label is not None
    assert built.denoiser.output == "v"
    # The teacher of moments is differentiated in forward mode too.
    has(
      built.denoiser.network.module,
      **UVITS[name],
      attention="xla",
      remat=True,
      dtype="bfloat16",
    )
  schedule = built.denoiser.process.schedule
  assert isinstance(schedule, Shifted) == (name == "imagenet128")
  if name == "imagenet128":
    has(schedule, image_size=128, base_size=32)
