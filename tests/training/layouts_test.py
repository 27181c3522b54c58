"""Frozen trees, trained trees and optimizers can be split in different ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffdistill.planning.hlo import read_program
from diffdistill.training.sharding import (
  OPTIMIZER,
  Layout,
  make_mesh,
  replicated,
  tree_shardings,
)
from tests.objectives.bench import bench, on_host

WHOLE = {"frozen": "none", "trained": "none", "optimizer": "all"}
BOTH = ("data", "fsdp")


@pytest.mark.parametrize(
  ("split", "shape", "spec"),
  [
    ("none", (512, 512), ()),
    ("fsdp", (512, 512), ("fsdp", None)),
    ("all", (512, 512), (BOTH, None)),
    ("all", (516, 504), (None, BOTH)),
    # Eight devices divide no axis, so the array is split over fsdp alone.
    ("all", (516, 515), ("fsdp", None)),
    ("all", (515, 515), ()),
    ("all", (64, 64), ()),
  ],
)
def test_an_array_is_split_over_the_devices_that_divide_it(split, shape, spec):
  layout = Layout(mesh=make_mesh(data=2, fsdp=4), optimizer=split)
  array = jax.ShapeDtypeStruct(shape, jnp.float32)
  (place,) = tree_shardings([array], layout, OPTIMIZER)
  assert place.spec == PartitionSpec(*spec)


def test_an_unknown_split_is_refused():
  with pytest.raises(
    ValueError, match=r"mesh.trained is 'data'; pass one of n"
  ):
    Layout(mesh=make_mesh(), trained="data")


def largest_part(tree):
  """The share of a tree's numbers that one device holds."""
  arrays = jax.tree.leaves(tree)
  held = sum(a.addressable_shards[0].data.size for a in arrays)
  return held / sum(a.size for a in arrays)


@pytest.fixture(scope="module")
def benches():
  """The same objective with weights split over fsdp, and with whole weights."""
  mesh = make_mesh(data=4, fsdp=2)
  return bench("progressive", mesh), bench("progressive", mesh, **WHOLE)


def test_weights_are_whole_and_the_optimizer_is_split(benches):
  _, whole = benches
  state = whole.start()
  for tree in (state.params, whole.frozen):
    for array in jax.tree.leaves(tree):
      assert array.sharding.is_equivalent_to(replicated(whole.mesh), array.ndim)
  # Each of eight devices holds an eighth of what can be divided.
  for tree in (state.opt_state, state.averages):
    assert largest_part(tree) < 0.4
  after, _ = whole.run(state, 0, 1)
  places = [
    jax.tree.map(lambda array: array.sharding, tree)
    for tree in (after, whole.abstract)
  ]
  assert jax.tree.leaves(places[0]) == jax.tree.leaves(places[1])


def test_layouts_train_the_same_weights(benches):
  trained = []
  for each in benches:
    state, heard = each.run(each.start(), 0, 3)
    trained.append((on_host(state), on_host(heard)))
  # Gradients are summed in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    *trained,
  )


def test_whole_weights_are_sent_only_once_in_an_update(benches):
  sent = []
  for each in benches:
    (turn,) = each.objective.cycle
    shapes = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
      (each.start(), each.frozen),
    )
    traced = dataclasses.replace(
      each, updates={turn: lambda *told: told}
    ).update(each.start(), turn)
    compiled = each.updates[turn].lower(*shapes, *traced[2:]).compile()
    messages = read_program(compiled.as_text(), 8).collectives
    sent.append(messages["all-gather"].bytes)
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(benches[0].frozen))
  split, whole = sent
  assert whole < 1.1 * weights
  assert whole < 0.6 * split
