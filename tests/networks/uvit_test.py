import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.configs import recipes
from diffdistill.networks import NETWORKS
from diffdistill.networks.embeddings import Embedding
from diffdistill.networks.layers import downsample, upsample
from diffdistill.networks.network import LinenNetwork
from diffdistill.networks.uvit import UViT
from diffdistill.networks.uvit_blocks import ConvBlock, TransformerBlock
from diffdistill.training import sharding

TINY = {
  "channels": (4, 8, 8),
  "num_blocks": (2, 1, 2),
  "head_dim": 4,
  "embed_dim": 8,
  "out_channels": 3,
}
ROWS = ("down_0", "down_1", "middle", "up_1", "up_0")
# Fields of a small network with both kinds of block.
PAIR = {"channels": (4, 8), "num_blocks": (1, 2)}
# Fields of a network of one stage, without a change of resolution or skips.
NANO = {"channels": (8,), "num_blocks": (2,), "conv_stages": 0}
LABEL = Condition(label=jnp.array([0, 2]))


def tiny(**fields):
  module = UViT(**{**TINY, **fields})
  return LinenNetwork(
    module=module, image_shape=(8, 8, 3), num_classes=module.num_classes
  )


def data(batch=2):
  x = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
  return x, jnp.linspace(0.2, 0.9, batch)


@pytest.mark.parametrize(
  ("size", "expected", "published"),
  # Published counts are in millions (Heek et al. 2024).
  [(64, 394_170_627, 394), (128, 397_447_427, 397)],
)
def test_parameter_counts_are_those_of_the_paper(
  size, expected, published, count
):
  fields = recipes.uvit_network(size)
  assert NETWORKS[fields.pop("kind")] is UViT
  network = LinenNetwork(
    # There are 1000 classes; class 1000 means no label.
    module=UViT(**fields, out_channels=3, num_classes=1001),
    image_shape=(size, size, 3),
    num_classes=1001,
  )
  assert count(network) == expected
  assert round(expected / 1e6) == published


def test_a_preset_of_unknown_size_is_refused():
  with pytest.raises(ValueError, match=r"image_size is 32; pass one of \(64"):
    recipes.uvit_network(32)


def test_initial_output_is_exactly_zero():
  # The network has 6 output channels, as for the output "both": x0 and eps.
  network = tiny(**PAIR, out_channels=6, patch=2)
  params = jax.jit(network.init)(jax.random.key(0))
  output = jax.jit(network.apply)(params, *data())
  assert output.shape == (2, 8, 8, 6)
  assert output.dtype == jnp.float32
  np.testing.assert_array_equal(output, 0)


def test_each_block_starts_with_different_weights():
  network = tiny(**NANO | {"channels": (64,)})
  params = jax.jit(network.init)(jax.random.key(0))
  kernel = params["middle"]["dense1"]["kernel"]
  assert kernel.shape == (2, 64, 256)
  # LeCun's deviation 1 / sqrt(64) has the 64 inputs of one block, not of all.
  np.testing.assert_allclose(jnp.std(kernel, axis=(1, 2)), 1 / 8, rtol=0.05)
  assert abs(np.corrcoef(kernel.reshape(2, -1))[0, 1]) < 0.05


@pytest.mark.slow
def test_every_parameter_and_input_changes_the_output(trained):
  network = tiny(num_classes=3)
  params, (x, t) = trained(network), data()

  def total(params, x, t):
    return jnp.sum(jnp.sin(network.apply(params, x, t, LABEL)))

  grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, t)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    # Check the weights of each block of a row separately.
    blocks = len(grad) if len(path) > 1 and path[1].key in ROWS else 1
    changed = jnp.any(grad.reshape(blocks, -1) != 0, axis=1)
    assert jnp.all(changed), jax.tree_util.keystr(path)


@jax.jit
def described(params, x, t, condition):
  """Computes the tiny network block by block, without a scan."""

  def part(module, name, *inputs):
    return module.apply({"params": params[name]}, *inputs)

  def block(h, name, index, skip=None):
    shared = {"gives_skip": False, "train": False, "dropout": 0.0}
    shared["dtype"] = jnp.float32
    kind = ConvBlock(groups=32, **shared)
    if name[-1] != "0":
      kind = TransformerBlock(head_dim=4, attention="xla", **shared)
    weights = jax.tree.map(lambda leaf: leaf[index], params[name])
    return kind.apply({"params": weights}, h, embed, skip)[0]

  embedding = Embedding(dim=4, embed_dim=8, num_classes=3)
  embed = part(embedding, "embed", t, condition.label)
  h = part(nn.Conv(4, (3, 3)), "conv_in", x)
  a = block(h, "down_0", 0)
  b = block(a, "down_0", 1)
  c = block(part(nn.Dense(8), "down_0_resample", downsample(b)), "down_1", 0)
  h = part(nn.Dense(8), "down_1_resample", downsample(c))
  h = h + params["position"][None]
  h = block(block(h, "middle", 0), "middle", 1)
  h = block(part(nn.Dense(8), "up_1_resample", upsample(h)), "up_1", 0, c)
  h = block(part(nn.Dense(4), "up_0_resample", upsample(h)), "up_0", 1, b)
  h = block(h, "up_0", 0, a)
  h = nn.swish(nn.GroupNorm(2).apply({"params": params["norm_out"]["norm"]}, h))
  return part(nn.Conv(3, (3, 3)), "conv_out", h)


def test_the_network_agrees_with_its_blocks_run_one_by_one(trained):
  network = tiny(num_classes=3)
  inputs = (trained(network), *data(), LABEL)
  np.testing.assert_allclose(
    jax.jit(network.apply)(*inputs), described(*inputs), atol=2e-5
  )


def random_weights(block, *inputs):
  shapes = jax.eval_shape(block.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), shapes)


def standard(x):
  return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def test_a_transformer_block_agrees_with_its_formula():
  keys = jax.random.split(jax.random.key(0), 3)
  x, skip = (jax.random.normal(key, (2, 2, 3, 8)) for key in keys[:2])
  embed = jax.random.normal(keys[2], (2, 5))
  block = TransformerBlock(
    gives_skip=True,
    train=False,
    dropout=0.0,
    head_dim=4,
    attention="xla",
    dtype=jnp.float32,
  )
  params = random_weights(block, x, embed, skip)
  w = jax.tree.map(np.asarray, params)

  def norm(name, h):
    return standard(h) * w[name]["scale"] + w[name].get("bias", 0)

  def dense(name, h):
    return h @ w[name]["kernel"] + w[name]["bias"]

  def swish(h):
    return h / (1 + np.exp(-h))

  joined = norm("norm1", np.asarray(x)) + norm("norm_skip", np.asarray(skip))
  film = dense("film", swish(np.asarray(embed)))[:, None, None]
  hidden = dense("dense1", joined / np.sqrt(2))
  hidden = hidden * (1 + film[..., :32]) + film[..., 32:]
  expected = np.asarray(x) + dense("dense2", swish(hidden))
  h = norm("norm2", expected).reshape(2, 6, 8)
  qkv = np.einsum("bnc,cshd->sbnhd", h, w["qkv"]["kernel"])
  q, k, v = qkv + w["qkv"]["bias"][:, None, None]
  q, k = norm("norm_q", q), norm("norm_k", k)
  logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  h = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 6, 8)
  expected = expected + dense("out", h).reshape(x.shape)
  output, given = jax.jit(block.apply)({"params": params}, x, embed, skip)
  np.testing.assert_array_equal(output, given)
  # The tolerance fits values of up to a hundred in float32.
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-3)


def test_a_conv_block_agrees_with_its_formula():
  keys = jax.random.split(jax.random.key(0), 3)
  x, skip = (jax.random.normal(key, (2, 4, 4, 4)) for key in keys[:2])
  embed = jax.random.normal(keys[2], (2, 5))
  block = ConvBlock(
    gives_skip=False, train=False, dropout=0.0, groups=1, dtype=jnp.float32
  )
  params = random_weights(block, x, embed, skip)

  def part(module, *path_and_input):
    *path, h = path_and_input
    weights = functools.reduce(lambda tree, name: tree[name], path, params)
    return module.apply({"params": weights}, h)

  norm = functools.partial(part, nn.GroupNorm(1))
  joined = norm("norm1", "norm", x) + norm("norm_skip", "norm", skip)
  h = part(nn.Conv(4, (3, 3)), "conv1", nn.swish(joined / 2**0.5))
  film = part(nn.Dense(8), "norm2", "film", nn.swish(embed))[:, None, None]
  h = norm("norm2", "norm", h) * (1 + film[..., :4]) + film[..., 4:]
  expected = x + part(nn.Conv(4, (3, 3)), "conv2", nn.swish(h))
  output, given = jax.jit(block.apply)({"params": params}, x, embed, skip)
  assert given is None
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_examples_of_a_batch_are_independent(trained):
  network = tiny(**PAIR)
  params, (x, t) = trained(network), data()
  apply = jax.jit(network.apply)
  both = apply(params, x, t)
  np.testing.assert_allclose(
    apply(params, x.at[1].set(0.0), t)[0], both[0], atol=1e-5
  )


def test_bfloat16_output_is_close_and_parameters_stay_float32(trained):
  full, half = tiny(**PAIR), tiny(**PAIR, dtype="bfloat16")
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
  assert 1e-4 < error < 5e-2


def test_rematerialisation_gives_the_same_gradients(trained):
  fields = NANO | {"dropout": (0.3,), "num_classes": 3}
  plain, remat = tiny(**fields), tiny(**fields, remat=True)
  params, (x, t) = trained(plain), data()
  key = jax.random.key(2)

  def grads(network):
    def loss(params):
      return jnp.mean(network.apply(params, x, t, LABEL, key=key) ** 2)

    return jax.grad(loss)

  traced = [jax.jit(grads(network)).trace(params) for network in (plain, remat)]
  assert ["remat" in str(each.jaxpr) for each in traced] == [False, True]
  jax.tree.map(
    # The tolerance is for float32 sums in different orders.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    *(each.lower().compile()(params) for each in traced),
  )


def test_only_a_key_enables_the_dropout_of_a_stage(trained):
  network = tiny(**PAIR, dropout=(0.0, 0.5))
  params, (x, t) = trained(network), data()
  apply = jax.jit(network.apply)
  off = apply(params, x, t)
  on = apply(params, x, t, key=jax.random.key(0))
  assert jnp.max(jnp.abs(on - off)) > 1e-3
  other = apply(params, x, t, key=jax.random.key(1))
  assert jnp.max(jnp.abs(on - other)) > 1e-3
  np.testing.assert_array_equal(apply(params, x, t, key=jax.random.key(0)), on)
  none = tiny(**PAIR)
  np.testing.assert_array_equal(
    jax.jit(none.apply)(params, x, t, key=jax.random.key(0)), off
  )


def test_labels_change_the_output(trained):
  network = tiny(**NANO, num_classes=3)
  params, (x, t) = trained(network), data()
  apply = jax.jit(network.apply)
  zero, one = (
    apply(params, x, t, Condition(label=jnp.array([0, k]))) for k in (0, 1)
  )
  np.testing.assert_array_equal(zero[0], one[0])
  assert jnp.max(jnp.abs(zero[1] - one[1])) > 1e-3


def test_the_jvp_along_the_weights_agrees_with_a_finite_difference(trained):
  network = tiny(**PAIR, remat=True)
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
  network = tiny(**PAIR, num_classes=3, remat=True)
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
  kernel = placed["middle"]["dense2"]["kernel"]
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


def test_rectangular_images_keep_their_shape():
  module = UViT(**TINY)
  network = LinenNetwork(module=module, image_shape=(4, 8, 1))
  output = jax.eval_shape(
    lambda x: network.apply(network.init(jax.random.key(0)), x, jnp.ones(2)),
    jnp.zeros((2, 4, 8, 1)),
  )
  assert output.shape == (2, 4, 8, 3)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"dtype": "float16"}, "dtype is 'float16'; pass one of float32"),
    ({"attention": "flash"}, "attention is 'flash'; pass one of xla, cudnn"),
    (
      {"attention": "cudnn"},
      "attention is 'cudnn', which computes no float32; pass dtype='bfloat16'",
    ),
    ({"channels": ()}, r"channels is \(\); pass one number"),
    ({"channels": (7, 8, 8)}, "channels is .*, the first even"),
    ({"num_blocks": (1, 2)}, r"num_blocks is \(1, 2\); pass one number"),
    ({"num_blocks": (1, 0, 2)}, r"num_blocks is \(1, 0, 2\); pass 1 or more"),
    ({"dropout": (0.1,)}, r"dropout is \(0\.1,\)"),
    (
      {"dropout": (0.0, 0.0, 1.0)},
      r"pass a value in \[0, 1\) for each",
    ),
    ({"conv_stages": 3}, "conv_stages is 3; pass 0 to 2"),
    ({"patch": 0}, "patch is 0; pass 1 or more"),
    ({"head_dim": 3}, "head_dim is 3, but attention has 8 channels"),
    ({"patch": 4}, "sizes divisible by 4"),
  ],
)
def test_invalid_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(tiny(**fields).init, jax.random.key(0))
