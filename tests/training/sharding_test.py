import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  AXES,
  MIN_SIZE_TO_SPLIT,
  batch_sharding,
  make_mesh,
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import create_state, with_shardings


@pytest.mark.parametrize(
  ("data", "fsdp", "sizes"),
  [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (1, -1, (1, 8)), (2, 4, (2, 4))],
)
def test_a_mesh_has_all_devices(data, fsdp, sizes):
  mesh = make_mesh(data=data, fsdp=fsdp)
  assert tuple(mesh.shape.items()) == tuple(zip(AXES, sizes, strict=True))
  assert set(mesh.devices.ravel()) == set(jax.devices())
  assert mesh.axis_types == (AxisType.Auto,) * 2


@pytest.mark.parametrize(
  ("data", "fsdp"),
  [(3, -1), (-1, 3), (2, 2), (16, 1), (-1, -1), (0, 8), (-1, 0), (-8, -1)],
)
def test_refuses_sizes_that_do_not_use_the_devices(data, fsdp):
  with pytest.raises(ValueError, match=rf"data={data}, fsdp={fsdp}.* 8 dev"):
    make_mesh(data=data, fsdp=fsdp)


BIG = MIN_SIZE_TO_SPLIT


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((BIG,), ("fsdp",)),
    ((BIG // 4, 8), ("fsdp", None)),
    ((8, BIG // 4), (None, "fsdp")),
    # The largest axis that 4 divides, and the first of equals.
    ((BIG - 1, 8), (None, "fsdp")),
    ((3, 3, 512, 512), (None, None, "fsdp", None)),
    ((BIG - 1, 3), ()),
    ((BIG // 8, 4), ()),
    ((BIG - 4,), ()),
    ((), ()),
  ],
)
def test_the_rule_from_shape_to_place(shape, spec):
  mesh = make_mesh(data=2, fsdp=4)
  array = jax.ShapeDtypeStruct(shape, jnp.float32)
  actual = tree_shardings({"a": array}, mesh)
  assert actual["a"].spec == PartitionSpec(*spec)


def test_nothing_is_split_without_fsdp():
  mesh = make_mesh()
  array = jax.ShapeDtypeStruct((BIG, 8), jnp.float32)
  assert tree_shardings([array], mesh) == [replicated(mesh)]


def test_rows_of_a_batch_are_spread_over_all_devices():
  mesh = make_mesh(data=2, fsdp=4)
  rows = {"image": np.arange(16.0).reshape(16, 1), "label": np.arange(16)}
  batch = shard_batch(rows, mesh)
  assert batch["image"].sharding == batch_sharding(mesh)
  for name, array in batch.items():
    np.testing.assert_array_equal(array, rows[name])
    held = [shard.data for shard in array.addressable_shards]
    assert [len(part) for part in held] == [2] * 8
    assert len({int(part[0].item()) for part in held}) == 8


def test_state_is_born_split(least_squares):
  class Net(least_squares):
    trains = ("student",)

    def init(self, key, frozen):
      module = MLP(width=512, depth=1, out_channels=3)
      return {
        "student": LinenNetwork(module=module, image_shape=(4, 4, 3)).init(key)
      }

  mesh = make_mesh(data=1, fsdp=8)
  optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)

  def init(key):
    return create_state(Net(), optimizer, key, {})

  shapes = jax.eval_shape(init, jax.random.key(0))
  compiled = jax.jit(init, out_shardings=tree_shardings(shapes, mesh))
  state = compiled(jax.random.key(0))
  large = 0
  for array, abstract in zip(
    jax.tree.leaves(state),
    jax.tree.leaves(with_shardings(shapes, mesh)),
    strict=True,
  ):
    assert array.sharding == abstract.sharding
    if array.size >= MIN_SIZE_TO_SPLIT:
      large += 1
      for shard in array.addressable_shards:
        assert shard.data.size == array.size // 8
  # Three layers of 512 x 512, each with two moments and an average.
  assert large == 3 * 4
  held = sum(
    shard.data.nbytes
    for array in jax.tree.leaves(state)
    for shard in array.addressable_shards
    if shard.device == jax.devices()[0]
  )
  total = sum(array.nbytes for array in jax.tree.leaves(state))
  assert held < 0.2 * total
