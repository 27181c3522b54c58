import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives.objective import Tree
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  AXES,
  MIN_SIZE_TO_SPLIT,
  Layout,
  batch_sharding,
  make_mesh,
  parameter_path,
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
  [(3, -1), (-1, 3), (2, 2), (16, 1), (0, 8), (-1, 0), (-8, -1)],
)
def test_mesh_sizes_that_do_not_use_all_devices_are_refused(data, fsdp):
  with pytest.raises(ValueError, match=rf"data={data}, fsdp={fsdp}.* 8 dev"):
    make_mesh(data=data, fsdp=fsdp)


@dataclasses.dataclass(frozen=True)
class Far:
  """A fake device that lies somewhere in a network of devices."""

  id: int
  platform: str
  process_index: int
  device_kind: str = "one"


@dataclasses.dataclass(frozen=True)
class Sliced(Far):
  """A fake device that also names its slice."""

  slice_index: int = 0
  coords: tuple = ()
  core_on_chip: int = 0


def tpu_slices(count):
  """Makes slices of 2 x 4 chips with two hosts each, the last slice first."""
  return [
    Sliced(
      id=8 * number + chip,
      platform="tpu",
      process_index=2 * number + chip // 4,
      slice_index=number,
      coords=(chip % 2, chip // 2, 0),
    )
    for number in reversed(range(count))
    for chip in range(8)
  ]


def gpu_hosts(count, kind=Far, **fields):
  return [
    kind(id=i, platform="gpu", process_index=i // 4, **fields)
    for i in range(4 * count)
  ]


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_fsdp_stays_inside_a_slice(fsdp):
  devices = make_mesh(fsdp=fsdp, devices=tpu_slices(2)).devices
  assert devices.shape == (16 // fsdp, fsdp)
  assert len(set(devices.ravel())) == 16
  slices = np.vectorize(lambda device: device.slice_index)(devices)
  # The data axis must go through one slice first, and then through the other.
  assert (slices.ravel() == np.repeat([0, 1], 8)).all()


def test_neighbours_on_the_mesh_are_neighbours_on_the_torus():
  devices = make_mesh(data=2, fsdp=4, devices=tpu_slices(1)).devices
  for row in devices:
    places = np.array([device.coords for device in row])
    assert (np.ptp(places, axis=0) == [0, 3, 0]).all()


def test_fsdp_is_a_whole_slice_if_neither_size_is_given():
  mesh = make_mesh(data=-1, fsdp=-1, devices=tpu_slices(2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 8}
  assert dict(make_mesh(data=-1, fsdp=-1).shape) == {"data": 1, "fsdp": 8}


def test_gpu_hosts_are_slices_unless_devices_name_their_slice():
  for fsdp in (2, 4):
    devices = make_mesh(fsdp=fsdp, devices=gpu_hosts(3)).devices
    hosts = np.vectorize(lambda device: device.process_index)(devices)
    assert (hosts == hosts[:, :1]).all()
  with pytest.raises(ValueError, match=r"mesh.fsdp is 12, which does not div"):
    make_mesh(fsdp=12, devices=gpu_hosts(3))
  # Hosts whose devices name the same slice count as one slice.
  joined = gpu_hosts(3, kind=Sliced, slice_index=7)
  assert make_mesh(fsdp=12, devices=joined).shape["fsdp"] == 12


@pytest.mark.parametrize(("data", "fsdp"), [(1, -1), (-1, 16), (1, 16)])
def test_an_fsdp_across_slices_is_refused(data, fsdp):
  with pytest.raises(
    ValueError, match=r"^mesh.fsdp is 16, .* the 8 devices of each of 2 slices"
  ):
    make_mesh(data=data, fsdp=fsdp, devices=tpu_slices(2))


def test_half_a_slice_is_refused():
  with pytest.raises(ValueError, match=r"the 2 slices have \[4, 8\] devices"):
    make_mesh(devices=tpu_slices(2)[:12])


BIG = MIN_SIZE_TO_SPLIT


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((BIG,), ("fsdp",)),
    ((BIG // 4, 8), ("fsdp", None)),
    ((8, BIG // 4), (None, "fsdp")),
    # Split the largest axis that 4 divides; if two axes are equal, split the
    # first.
    ((BIG - 1, 8), (None, "fsdp")),
    ((3, 3, 512, 512), (None, None, "fsdp", None)),
    ((BIG - 1, 3), ()),
    ((BIG // 8, 4), ()),
    ((BIG - 4,), ()),
    ((), ()),
  ],
)
def test_the_largest_axis_that_fsdp_divides_is_split(shape, spec):
  mesh = make_mesh(data=2, fsdp=4)
  array = jax.ShapeDtypeStruct(shape, jnp.float32)
  actual = tree_shardings({"a": array}, Layout(mesh=mesh))
  assert actual["a"].spec == PartitionSpec(*spec)


def test_nothing_is_split_without_fsdp():
  mesh = make_mesh()
  array = jax.ShapeDtypeStruct((BIG, 8), jnp.float32)
  assert tree_shardings([array], Layout(mesh=mesh)) == [replicated(mesh)]


def paths_of(places):
  """Gives the split axis of each split array, by the array's path."""
  return {
    parameter_path(path): place.spec.index("fsdp")
    for path, place in jax.tree.leaves_with_path(places)
    if "fsdp" in place.spec
  }


NET = {
  "conv_in": {"kernel": np.zeros((3, 3, 8, 512)), "bias": np.zeros(512)},
  "block": {"conv_in": {"kernel": np.zeros((3, 3, 512, 512))}},
}


@pytest.mark.parametrize(
  ("overrides", "expected"),
  [
    ((), {"block/conv_in/kernel": 2}),
    (
      (("conv_in/kernel", 3),),
      {"conv_in/kernel": 3, "block/conv_in/kernel": 3},
    ),
    ((("^conv_in", -1), ("kernel", -1)), {}),
    # The first override that matches is used, also for arrays that are small.
    (
      (("^conv_in/kernel$", 2), ("block/.*kernel", 3), ("conv_in", -1)),
      {"conv_in/kernel": 2, "block/conv_in/kernel": 3},
    ),
    ((("bias", 0),), {"conv_in/bias": 0, "block/conv_in/kernel": 2}),
  ],
)
def test_an_override_comes_before_the_rule(overrides, expected):
  layout = Layout(mesh=make_mesh(data=2, fsdp=4), overrides=overrides)
  layout.check([NET])
  assert paths_of(tree_shardings(NET, layout)) == expected


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ((("conv_in(", 2),), r"'conv_in\(', which is no regular expression"),
    ((("conv_out", 2),), r"'conv_out', which is found in no parameter"),
    ((("conv", -1), ("kernel", 3)), r"'kernel', which is found in no par"),
    (
      (("conv_in/kernel", 1),),
      r"\('conv_in/kernel', 1\), but block/conv_in/kernel is of shape"
      r" \(3, 3, 512, 512\); pass an axis that fsdp=4 divides",
    ),
    ((("bias", 1),), r"\('bias', 1\), but conv_in/bias is of shape \(512,\)"),
    ((("bias", -2),), r"\('bias', -2\), but conv_in/bias is of shape"),
  ],
)
def test_overrides_that_do_not_fit_are_refused(overrides, message):
  with pytest.raises(ValueError, match=rf"^mesh\.overrides has {message}"):
    Layout(mesh=make_mesh(data=2, fsdp=4), overrides=overrides).check([NET])


def test_moments_and_averages_are_split_like_their_parameters(least_squares):
  class Net(least_squares):
    def init(self, key, frozen):
      return {name: jax.tree.map(jnp.asarray, NET) for name in self.trees}

  layout = Layout(
    mesh=make_mesh(data=2, fsdp=4),
    # A pattern can be anchored, because a parameter has the same path in every
    # tree.
    overrides=(("^conv_in/kernel$", 3), ("^block", -1)),
  )
  optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)
  optimizers = dict.fromkeys(Net().trees, optimizer)
  shapes = jax.eval_shape(
    lambda key: create_state(Net(), optimizers, key, {}), jax.random.key(0)
  )
  state = with_shardings(shapes, layout)
  assert jax.tree.structure(state) == jax.tree.structure(shapes)
  for tree in (
    *state.params.values(),
    state.averages["student"]["ema"],
    *(
      optax.tree.get(state.opt_state[n], m)
      for n in Net().trees
      for m in ("mu", "nu")
    ),
    with_shardings(NET, layout),
  ):
    places = jax.tree.map(lambda leaf: leaf.sharding, tree)
    assert paths_of(places) == {"conv_in/kernel": 3}


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


def test_the_first_state_is_split_when_it_is_made(least_squares):
  class Net(least_squares):
    @property
    def trees(self):
      module = MLP(width=512, depth=1, out_channels=3)
      network = LinenNetwork(module=module, image_shape=(4, 4, 3))
      return {"student": Tree(network=network)}

  mesh = make_mesh(data=1, fsdp=8)
  optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)

  def init(key):
    return create_state(Net(), {"student": optimizer}, key, {})

  shapes = jax.eval_shape(init, jax.random.key(0))
  compiled = jax.jit(
    init, out_shardings=tree_shardings(shapes, Layout(mesh=mesh))
  )
  state = compiled(jax.random.key(0))
  large = 0
  for array, abstract in zip(
    jax.tree.leaves(state),
    jax.tree.leaves(with_shardings(shapes, Layout(mesh=mesh))),
    strict=True,
  ):
    assert array.sharding == abstract.sharding
    if array.size >= MIN_SIZE_TO_SPLIT:
      large += 1
      for shard in array.addressable_shards:
        assert shard.data.size == array.size // 8
  # Each of three layers of 512 x 512 has weights, two moments and an average.
  assert large == 3 * 4
  held = sum(
    shard.data.nbytes
    for array in jax.tree.leaves(state)
    for shard in array.addressable_shards
    if shard.device == jax.devices()[0]
  )
  total = sum(array.nbytes for array in jax.tree.leaves(state))
  assert held < 0.2 * total
