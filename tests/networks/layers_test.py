import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks import embeddings, layers


@pytest.mark.parametrize(
  ("fields", "shift"),
  [({}, 1), ({"cos_first": True}, 1), ({"shift": 0}, 0)],
)
def test_sinusoid_agrees_with_its_formula(fields, shift):
  t = np.array([0.0, 0.3, 1.0])
  dim, half = 8, 4
  frequency = np.exp(-np.log(1e4) * np.arange(half) / (half - shift))
  angle = 1000 * t[:, None] * frequency
  waves = [np.sin(angle), np.cos(angle)]
  if "cos_first" in fields:
    waves.reverse()
  expected = np.concatenate(waves, axis=-1)
  actual = embeddings.sinusoid(jnp.asarray(t, jnp.float32), dim, **fields)
  # The tolerance is for float32 angles up to 1000, which err by 1000 * 6e-8.
  np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize(
  ("groups", "channels", "expected"),
  [
    (32, 64, 32),
    (32, 96, 32),
    (32, 1536, 32),
    (32, 16, 8),
    (32, 24, 12),
    (32, 7, 1),
    (5, 12, 4),
    (32, 1, 1),
  ],
)
def test_num_groups_divides_the_channels(groups, channels, expected):
  assert layers.num_groups(groups, channels) == expected


def test_group_size_sets_the_channels_of_a_group():
  assert layers.num_groups(32, 32, group_size=1) == 32
  assert layers.num_groups(32, 48, group_size=3) == 16


def test_downsample_averages_and_upsample_repeats_pixels():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(
    layers.downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]]
  )
  up = layers.upsample(x)[0, :, :, 0]
  np.testing.assert_array_equal(up[:2, :4], [[0, 0, 1, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(layers.downsample(layers.upsample(x)), x)


def test_strided_down_halves_and_nearest_up_doubles_the_size():
  x = jnp.ones((1, 4, 6, 2))
  down, _ = layers.StridedDown().init_with_output(jax.random.key(0), x)
  up, _ = layers.NearestUp().init_with_output(jax.random.key(0), x)
  assert down.shape == (1, 2, 3, 2)
  assert up.shape == (1, 8, 12, 2)


@pytest.mark.parametrize(
  ("padding", "sums"),
  [("same", [[9, 6], [6, 4]]), ("both", [[4, 6], [6, 9]])],
)
def test_padding_selects_the_sides_a_strided_convolution_pads(padding, sums):
  down = layers.StridedDown(padding=padding)
  params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
  actual = down.apply({"params": params}, jnp.ones((1, 4, 4, 1)))
  np.testing.assert_array_equal(actual[0, :, :, 0], sums)


def test_norm_adds_epsilon_to_the_variance():
  x = jnp.array([-1.0, 1.0]).reshape(1, 1, 2, 1)
  y, _ = layers.Norm(epsilon=3.0).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(y, x / 2, rtol=1e-6)


def test_adaptive_norm_scales_and_shifts():
  x = 3 + 5 * jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
  embed = jnp.ones((2, 3))
  norm = layers.Norm(groups=2)
  params = norm.init(jax.random.key(1), x, embed)["params"]
  plain = norm.apply({"params": {"norm": params["norm"]}}, x)
  np.testing.assert_allclose(jnp.mean(plain, axis=(1, 2, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(plain, axis=(1, 2, 3)), 1, atol=1e-4)
  bias = jnp.concatenate([jnp.full(4, 0.5), jnp.full(4, -2.0)])
  kernel = jnp.zeros_like(params["film"]["kernel"])
  params = {**params, "film": {"kernel": kernel, "bias": bias}}
  actual = norm.apply({"params": params}, x, embed)
  np.testing.assert_allclose(actual, 1.5 * plain - 2, atol=1e-5)


@pytest.mark.parametrize(
  "fields",
  [{"num_heads": 2}, {"head_dim": 4}, {"num_heads": 2, "normalise": False}],
)
def test_attention_agrees_with_its_formula(fields):
  x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
  attention = layers.Attention(**fields)
  params = attention.init(jax.random.key(1), x)["params"]
  np.testing.assert_array_equal(attention.apply({"params": params}, x), x)
  params["out"]["kernel"] = jnp.eye(8)
  h = x
  if fields.get("normalise", True):
    h = layers.Norm().apply({"params": params["norm"]}, x)
  h = h.reshape(2, 6, 8)
  qkv = np.einsum("bnc,cshd->sbnhd", h, params["qkv"]["kernel"])
  logits = np.einsum("bnhd,bmhd->bhnm", qkv[0], qkv[1]) / np.sqrt(4)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  out = np.einsum("bhnm,bmhd->bnhd", weights, qkv[2]).reshape(x.shape)
  np.testing.assert_allclose(
    attention.apply({"params": params}, x), x + out, atol=1e-5
  )


@pytest.mark.parametrize(
  ("heads", "name"),
  [({"num_heads": 3}, "num_heads is 3"), ({"head_dim": 5}, "head_dim is 5")],
)
def test_heads_must_divide_the_channels(heads, name):
  with pytest.raises(ValueError, match=name):
    layers.Attention(**heads).init(jax.random.key(0), jnp.ones((1, 2, 2, 8)))


def test_a_label_outside_the_classes_embeds_as_no_class():
  embedding = embeddings.Embedding(dim=4, embed_dim=4, num_classes=3)
  t, label = jnp.full(2, 0.5), jnp.array([-1, 1])
  params = embedding.init(jax.random.key(0), t, label)["params"]
  none, one = embedding.apply({"params": params}, t, label)
  zeroed = {**params, "label": jax.tree.map(jnp.zeros_like, params["label"])}
  expected = embedding.apply({"params": zeroed}, t, label)[0]
  np.testing.assert_allclose(none, expected, atol=1e-6)
  assert jnp.max(jnp.abs(one - none)) > 1e-3


def test_fold_gathers_patches_and_unfold_restores_them():
  x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
  folded = layers.fold(x, 2)
  assert folded.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(
    folded[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6]
  )
  np.testing.assert_array_equal(layers.unfold(folded, 2), x)
  with pytest.raises(ValueError, match="patches of 4"):
    layers.fold(x, 4)


def attend(kernel):
  layer = layers.Attention(num_heads=2, dtype=jnp.bfloat16, kernel=kernel)
  x = jnp.linspace(-1, 1, 2 * 4 * 4 * 8).reshape(2, 4, 4, 8)
  params = jax.tree.map(
    lambda leaf: jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape),
    jax.eval_shape(layer.init, jax.random.key(0), x),
  )
  return functools.partial(layer.apply, params), x


def test_fused_attention_is_xla_s_where_cudnn_is_missing():
  outputs = []
  for kernel in ("xla", "fused"):
    apply, x = attend(kernel)
    outputs.append(jax.jit(apply)(x))
  np.testing.assert_array_equal(*outputs)
  assert np.abs(outputs[0] - x).max() > 0.1


def test_fused_attention_asks_for_cudnn_on_nvidia_gpus(monkeypatch):
  asked, xla = [], jax.nn.dot_product_attention

  def recorded(q, k, v, *, implementation):
    asked.append(implementation)
    # The result tells which of the two was lowered.
    return xla(q, k, v) + (implementation == "cudnn")

  monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
  apply, x = attend("fused")
  traced = jax.jit(apply).trace(x)
  assert set(asked) == {"xla", "cudnn"}
  lowered = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "cuda", "tpu")
  }
  ones = {
    platform: text.count("1.000000e+00") for platform, text in lowered.items()
  }
  assert ones["cuda"] == ones["cpu"] + 1 == ones["tpu"] + 1
