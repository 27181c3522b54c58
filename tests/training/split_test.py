"""Tests that no device of a 1 x 8 mesh holds an array that could be split."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from diffdistill.planning.hlo import read_program
from diffdistill.planning.ideal import random_frozen
from diffdistill.planning.programs import programs
from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.training.cadence import Cadence
from diffdistill.training.state import with_shardings
from diffdistill.training.trainer import Trainer

# Smaller arrays may be whole on each device. An eighth of any array in these
# tests is smaller than this.
FEW = 200


@pytest.fixture(scope="module", autouse=True)
def small_arrays_are_split():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", FEW)
    yield


@pytest.fixture(scope="module")
def run(small_config):
  """Makes a run of a classifier, a teacher and two different students."""
  stages = small_config["stages"]
  stage = {
    "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
    "num_updates": 2,
    "batch_size": 16,
  }
  config = {
    **small_config,
    "run": ("classifier", "teacher", "halve", "moments"),
    "mesh": {"data": 1, "fsdp": 8},
    "classifier": {**small_config["classifier"], "channels": 8},
    "model": {
      **small_config["model"],
      "network": {"kind": "mlp", "width": 32, "depth": 1},
    },
    "stages": {
      "classifier": {**stages["classifier"], "batch_size": 16},
      "teacher": {**stage, "objective": {"kind": "denoising"}},
      "halve": {
        **stage,
        "objective": {"kind": "classifier_features"},
        "frozen": {"teacher": "teacher", "classifier": "classifier"},
        "start_steps": 2,
        "long_rounds": 0,
        "select": {"by": "distance", "every": 1},
        "teacher_dtype": "bfloat16",
      },
      "moments": {
        **stage,
        "objective": {"kind": "parameter_moment_matching"},
        "sampler": {"kind": "ancestral", "noise": 0.0},
        "frozen": {"teacher": "teacher", "second_moments": "teacher"},
        "num_steps": (2,),
      },
    },
  }
  return from_config.build(config)


def whole(array):
  """Whether one device holds the whole of an array that could be split."""
  divisible = any(n % 8 == 0 for n in array.shape)
  if array.size < FEW or not divisible:
    return False
  return array.sharding.shard_shape(array.shape) == array.shape


@pytest.mark.slow
def test_no_device_holds_a_whole_tree_while_a_run_trains(run, tmp_path):
  # Keep the old arrays alive, so that no new array gets the id of an old one.
  there = {id(a): a for a in jax.live_arrays()}
  looked, held = [], {}

  def look(stage, round_, product, *_):
    assert not any(map(whole, jax.tree.leaves(product)))
    new = [a for a in jax.live_arrays() if id(a) not in there]
    assert [a.shape for a in new if whole(a)] == []
    looked.append(round_.name)
    # Count the numbers in split arrays, once after the first update of the
    # round.
    for dtype in (jnp.float32, jnp.bfloat16):
      split = [a for a in new if a.dtype == dtype and not a.is_fully_replicated]
      held.setdefault((round_.name, dtype), sum(a.size for a in split))
    return 1.0 / len(looked)

  Trainer(
    stages=run.stages,
    workdir=epath.Path(tmp_path),
    seed=0,
    batches=run.batches,
    pairs=functools.partial(pair_store, run, epath.Path(tmp_path)),
    outside=functools.partial(load_outside, run),
    layout=run.layout,
    cadence=Cadence(observe=1, checkpoint=1),
    observe=look,
    distance=look,
  ).run()
  names = ["classifier", "teacher", "halve/001", "moments/002"]
  # Each round is inspected after its first update and at its end. One round is
  # also scored at these moments.
  assert [looked.count(name) for name in names] == [2, 2, 4, 2]
  frozen = random_frozen(run, run.stages[2])
  network, classifier = (
    sum(
      leaf.size
      for leaf in jax.tree.leaves(tree)
      if not leaf.is_fully_replicated
    )
    for tree in (frozen["teacher"], frozen["classifier"])
  )
  # A round holds weights, two moments, an average and the frozen trees that it
  # needs. A student whose teacher is in bfloat16 does not hold the float32
  # teacher. Batches are bytes, so they are not counted.
  assert [held[name, jnp.float32] for name in names] == [
    3 * classifier,
    4 * network,
    4 * network + classifier,
    4 * network + 2 * network,
  ]
  assert [held[name, jnp.bfloat16] for name in names] == [0, 0, network, 0]


def test_random_weights_are_split_when_they_are_drawn(run):
  for stage in run.stages[2:]:
    frozen = random_frozen(run, stage)
    assert set(frozen) == set(stage.objective.needs)
    for tree in frozen.values():
      assert not any(map(whole, jax.tree.leaves(tree)))
  ones = jax.tree.leaves(frozen["second_moments"])
  assert all((leaf == 1).all() for leaf in ones)


# The compilation of this program takes half a minute.
@pytest.fixture(
  scope="module",
  params=[pytest.param(parts, marks=pytest.mark.slow) for parts in (1, 2)],
  ids="in {} parts".format,
)
def program(request, small_config):
  """Compiles the update of a U-Net on eight devices.

  Gives (the number of parts of a batch, the run, the update, the compiled
  update).
  """
  config = {
    **small_config,
    "run": ("teacher",),
    "mesh": {"data": 1, "fsdp": 8},
    "model": {
      "network": {
        "kind": "unet",
        "channels": 32,
        "multipliers": (1,),
        "num_blocks": 1,
        "attention": (),
      },
      "schedule": {"kind": "cosine"},
    },
    "stages": {
      "teacher": {
        "objective": {"kind": "denoising"},
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
        "accumulate": request.param,
        "num_updates": 2,
        "batch_size": 128,
      }
    },
  }
  built = from_config.build(config)
  update, _ = programs(built)
  with pytest.MonkeyPatch.context() as patch:
    # The compiled program loops over the parts of a batch, as on an
    # accelerator.
    patch.setattr("diffdistill.training.step.unrolled", lambda mesh: False)
    traced = update.trace()
  return request.param, built, update, traced.lower().compile()


def test_every_argument_of_an_update_is_split(program):
  _, _, update, compiled = program
  # The state has weights, two moments and an average, with four bytes a number.
  everything = 4 * 4 * update.trained
  assert update.state_bytes < 1.2 * everything / 8
  images = 128 * (2 * 2 * 1 + 1) * 4 / 8
  held = compiled.memory_analysis().argument_size_in_bytes
  assert held == pytest.approx(update.state_bytes + images, rel=0.01)


def test_only_weights_are_gathered_and_only_gradients_summed(program):
  parts, _, update, compiled = program
  messages = read_program(compiled.as_text(), 8).collectives
  weights = 4 * update.trained
  # For each part of a batch, the weights are gathered at most in the forward
  # pass and in the backward pass. If the optimizer's state were gathered too,
  # that would be four times the weights.
  assert 0.9 * weights < messages["all-gather"].bytes < 2.2 * parts * weights
  summed = messages["all-reduce"].bytes / parts
  assert 0.7 * weights < summed < 1.15 * weights
  for kind in set(messages) - {"all-gather", "all-reduce"}:
    assert messages[kind].bytes < 0.3 * weights, kind


def test_a_sum_of_gradients_is_split_like_the_weights(program):
  parts, built, _, compiled = program
  # Collect the arrays that the program's loops carry: the loop over parts of a
  # batch, and the loops that generate random noise.
  carried = collections.Counter(
    tuple(map(int, shape.split(",")))
    for loop in re.findall(r"= \((.*)\) while\(", compiled.as_text())
    for shape in re.findall(r"f32\[([\d,]+)\]", loop)
  )
  weights = with_shardings(
    jax.eval_shape(built.denoiser.network.init, jax.random.key(0)), built.layout
  )
  held = collections.Counter(
    leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(weights)
  )
  assert (held <= carried) == (parts > 1)
