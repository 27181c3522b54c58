import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.configs import recipes
from diffdistill.networks import NETWORKS
from diffdistill.networks.dit import Block, DiT, positions
from diffdistill.networks.network import LinenNetwork
from diffdistill.training import sharding

TINY = {"width": 8, "depth": 2, "num_heads": 2, "out_channels": 3}
LABEL = Condition(label=jnp.array([0, 2]))


def tiny(**fields):
  module = DiT(**{**TINY, **fields})
  return LinenNetwork(
    module=module, image_shape=(4, 8, 3), num_classes=module.num_classes
  )


def data(batch=2):
  x = jax.random.normal(jax.random.key(1), (batch, 4, 8, 3))
  return x, jnp.linspace(0.2, 0.9, batch)


@pytest.mark.parametrize(
  ("size", "expected"),
  # The expected counts are in millions, recalled from Peebles & Xie 2023.
  [("S", 33), ("B", 130), ("L", 458), ("XL", 675)],
)
def test_parameter_counts_are_those_of_the_paper(size, expected, count):
  fields = recipes.dit_network(size, patch=2)
  assert NETWORKS[fields.pop("kind")] is DiT
  network = LinenNetwork(
    # The paper's networks read latents of 4 channels and predict a mean and a
    # variance of each. Class 1000 means no label.
    module=DiT(**fields, out_channels=8, num_classes=1001),
    image_shape=(32, 32, 4),
    num_classes=1001,
  )
  assert round(count(network) / 1e6) == expected


def test_a_preset_of_unknown_size_is_refused():
  with pytest.raises(ValueError, match="size is 'M'; pass one of S, B, L, XL"):
    recipes.dit_network("M", patch=2)


def test_initial_output_is_zero_and_initial_blocks_are_the_identity():
  network = tiny(out_channels=6)
  params = jax.jit(network.init)(jax.random.key(0))
  output = jax.jit(network.apply)(params, *data())
  assert output.shape == (2, 4, 8, 6)
  assert output.dtype == jnp.float32
  np.testing.assert_array_equal(output, 0)
  block = Block(num_heads=2, attention="xla", dtype=jnp.float32)
  h, embed = jnp.arange(48.0).reshape(2, 3, 8), jnp.ones((2, 8))
  first = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
  same, _ = jax.jit(block.apply)({"params": first}, h, embed)
  np.testing.assert_array_equal(same, h)
  kernel = params["blocks"]["dense1"]["kernel"]
  assert jnp.max(jnp.abs(kernel[0] - kernel[1])) > 0.1


def test_position_embeddings_are_waves_of_the_column_then_of_the_row():
  waves = positions(2, 3, 8)
  assert waves.shape == (6, 8)
  row, column = 1, 2
  expected = [
    wave(place * frequency)
    for place in (column, row)
    for wave in (np.sin, np.cos)
    for frequency in (1.0, 0.01)
  ]
  np.testing.assert_allclose(waves[row * 3 + column], expected, atol=1e-6)


def test_a_block_agrees_with_its_formula():
  block = Block(num_heads=2, attention="xla", dtype=jnp.float32)
  keys = jax.random.split(jax.random.key(0), 2)
  h, embed = (
    jax.random.normal(keys[0], (2, 3, 8)),
    jax.random.normal(keys[1], (2, 5)),
  )
  shapes = jax.eval_shape(block.init, jax.random.key(0), h, embed)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), shapes)
  w, expected = jax.tree.map(np.asarray, params), np.asarray(h)

  def dense(name, h):
    return h @ w[name]["kernel"] + w[name]["bias"]

  def norm(h, scale, shift):
    h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
    return h * (1 + scale) + shift

  film = dense("film", np.asarray(nn.swish(embed)))[:, None]
  shift1, scale1, gate1, shift2, scale2, gate2 = np.split(film, 6, axis=-1)
  qkv = np.einsum(
    "bnc,cshd->sbnhd", norm(expected, scale1, shift1), w["qkv"]["kernel"]
  )
  q, k, v = qkv + w["qkv"]["bias"][:, None, None]
  logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  update = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 3, 8)
  expected = expected + gate1 * dense("out", update)
  hidden = dense("dense1", norm(expected, scale2, shift2))
  hidden = np.asarray(nn.gelu(hidden, approximate=True))
  expected = expected + gate2 * dense("dense2", hidden)
  output, _ = jax.jit(block.apply)({"params": params}, h, embed)
  # The tolerance fits values in the hundreds in float32.
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-2)


def test_every_parameter_and_input_changes_the_output(trained):
  network = tiny(num_classes=3)
  params, (x, t) = trained(network), data()

  def total(params, x, t):
    return jnp.sum(jnp.sin(network.apply(params, x, t, LABEL)))

  grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, t)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    # The first axis of a block's weights is the block; check each block.
    blocks = 2 if len(path) > 1 and path[1].key == "blocks" else 1
    changed = jnp.any(grad.reshape(blocks, -1) != 0, axis=1)
    assert jnp.all(changed), jax.tree_util.keystr(path)


def test_examples_are_independent_and_a_key_changes_nothing(trained):
  network = tiny()
  params, (x, t) = trained(network), data()
  apply = jax.jit(network.apply)
  both = apply(params, x, t)
  np.testing.assert_allclose(
    apply(params, x.at[1].set(0.0), t)[0], both[0], atol=1e-5
  )
  np.testing.assert_array_equal(
    apply(params, x, t, key=jax.random.key(0)), both
  )


def test_labels_change_the_output(trained):
  network = tiny(num_classes=3)
  params, (x, t) = trained(network), data()
  apply = jax.jit(network.apply)
  zero, one = (
    apply(params, x, t, Condition(label=jnp.array([0, k]))) for k in (0, 1)
  )
  np.testing.assert_array_equal(zero[0], one[0])
  assert jnp.max(jnp.abs(zero[1] - one[1])) > 1e-3


def test_bfloat16_output_is_close_and_parameters_stay_float32(trained):
  full, half = tiny(), tiny(dtype="bfloat16")
  params, (x, t) = trained(full), data()
  dtypes = {
    leaf.dtype
    for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))
  }
  assert dtypes == {jnp.dtype("float32")}
  expected = jax.jit(full.apply)(params, x, t)
  actual = jax.jit(half.apply)(params, x, t)
  assert actual.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean((actual - expected) ** 2) / jnp.mean(expected**2))
  # Each of a dozen layers rounds to 8 bits in bfloat16, hence the tolerance.
  assert 1e-4 < error < 3e-2


def test_rematerialisation_gives_the_same_gradients(trained):
  plain, remat = tiny(), tiny(remat=True)
  params, (x, t) = trained(plain), data()

  def grads(network):
    def loss(params):
      return jnp.mean(network.apply(params, x, t) ** 2)

    return jax.grad(loss)

  traced = [jax.jit(grads(network)).trace(params) for network in (plain, remat)]
  assert ["remat" in str(each.jaxpr) for each in traced] == [False, True]
  jax.tree.map(
    # The tolerance is for float32 sums in different orders.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    *(each.lower().compile()(params) for each in traced),
  )


def test_the_jvp_along_the_weights_agrees_with_a_finite_difference(trained):
  network = tiny(remat=True)
  params, (x, t) = trained(network), data()
  along = jax.tree.map(lambda leaf: jnp.cos(leaf * 7), params)

  @jax.jit
  def moved(step):
    place = jax.tree.map(lambda a, b: a + step * b, params, along)
    return network.apply(place, x, t)

  _, tangent = jax.jit(lambda step: jax.jvp(moved, (step,), (1.0,)))(0.0)
  step = 2e-3
  # This finite difference (Richardson's) has an error of order step^4.
  near = (moved(step) - moved(-step)) / (2 * step)
  far = (moved(2 * step) - moved(-2 * step)) / (4 * step)
  difference = (4 * near - far) / 3
  error = jnp.max(jnp.abs(tangent - difference)) / jnp.max(jnp.abs(tangent))
  assert error < 2e-4


def test_a_mesh_of_devices_does_not_change_the_output(
  trained, mesh_of, monkeypatch
):
  network = tiny(num_classes=3, remat=True)
  params, (x, t) = trained(network), data(8)
  label = Condition(label=jnp.arange(8) % 3)
  monkeypatch.setattr(sharding, "MIN_SIZE_TO_SPLIT", 0)
  outputs = []
  for size in (1, 8):
    mesh = mesh_of(1, size)
    shardings = sharding.tree_shardings(params, sharding.Layout(mesh=mesh))
    rows = sharding.batch_sharding(mesh)
    placed = jax.device_put(params, shardings)
    inputs = jax.device_put((x, t, label), rows)
    traced = jax.jit(network.apply).trace(placed, *inputs)
    # `keep_rows` must add a constraint that keeps examples on their devices.
    assert "sharding_constraint" in str(traced.jaxpr)
    outputs.append(np.asarray(traced.lower().compile()(placed, *inputs)))
  kernel = placed["blocks"]["dense2"]["kernel"]
  assert kernel.shape == (2, 32, 8)
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 4, 8)
  # The tolerance is for float32 sums in different orders.
  np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


def test_the_configured_attention_kernel_is_called(monkeypatch):
  asked = []
  xla = jax.nn.dot_product_attention

  def recorded(q, k, v, *, implementation):
    asked.append((implementation, q.dtype.name))
    return xla(q, k, v)

  monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
  for attention in ("xla", "cudnn"):
    network = tiny(attention=attention, dtype="bfloat16")
    jax.eval_shape(network.init, jax.random.key(0))
  assert set(asked) == {("xla", "bfloat16"), ("cudnn", "bfloat16")}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"dtype": "float16"}, "dtype is 'float16'; pass one of float32"),
    ({"attention": "flash"}, "attention is 'flash'; pass one of xla, cudnn"),
    (
      {"attention": "cudnn"},
      "attention is 'cudnn', which computes no float32; pass dtype='bfloat16'",
    ),
    ({"width": 6}, "width is 6; pass a multiple of 4"),
    ({"depth": 0}, "depth is 0; pass 1 or more"),
    ({"num_heads": 3}, "num_heads is 3, but attention has 8 channels"),
    ({"patch": 3}, "images of 4x8 do not divide into patches of 3"),
  ],
)
def test_invalid_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(tiny(**fields).init, jax.random.key(0))
