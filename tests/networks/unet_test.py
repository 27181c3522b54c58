import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.networks import NETWORKS
from diffdistill.networks.network import LinenNetwork
from diffdistill.networks.unet import UNet

TINY = {
  "channels": 8,
  "multipliers": (1, 2),
  "num_blocks": 1,
  "attention": (4,),
  "out_channels": 3,
}
# A network of one level, for tests that need no change of resolution.
NANO = {"multipliers": (1,), "attention": ()}
STYLES = ("film", "ddpm")
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def tiny(**fields):
  module = UNet(**{**TINY, **fields})
  return LinenNetwork(
    module=module, image_shape=(8, 8, 3), num_classes=module.num_classes
  )


def trained(network):
  """Makes random weights and biases, scaled by fan-in; none is zero."""
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  leaves = [
    jnp.asarray(
      rng.normal(size=a.shape) / np.sqrt(max(1, np.prod(a.shape[:-1]))),
      jnp.float32,
    )
    for a in leaves
  ]
  return jax.tree.unflatten(tree, leaves)


def data(batch=2):
  x = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
  return x, jnp.linspace(0.2, 0.9, batch)


PD = {"num_blocks": 3, "style": "film"}
DDPM = {
  "channels": 128,
  "num_blocks": 2,
  "attention": (16,),
  "out_channels": 3,
  "style": "ddpm",
}


@pytest.mark.parametrize(
  ("size", "fields", "expected"),
  [
    # These counts are in millions, for released configs of Salimans & Ho 2022.
    (
      32,
      PD
      | {"channels": 256, "multipliers": (1, 1, 1)}
      | {"attention": (8, 16), "out_channels": 3},
      60.0,
    ),
    (
      64,
      PD
      | {"channels": 192, "multipliers": (1, 2, 3, 4), "head_dim": 64}
      | {"attention": (8, 16, 32), "out_channels": 6, "num_classes": 1000},
      295.9,
    ),
    (
      128,
      PD
      | {"channels": 64, "multipliers": (1, 2, 4, 6, 8), "head_dim": 64}
      | {"attention": (8, 16, 32), "out_channels": 6, "embed_dim": 768},
      139.6,
    ),
    # These counts are exact, for CIFAR-10, CelebA-64 and LSUN-256 (Ho 2020,
    # Song 2021).
    (32, DDPM | {"multipliers": (1, 2, 2, 2)}, 35_746_307),
    (64, DDPM | {"multipliers": (1, 2, 2, 2, 4)}, 78_700_803),
    (256, DDPM | {"multipliers": (1, 1, 2, 2, 4, 4)}, 113_673_219),
  ],
)
def test_parameter_counts_are_those_of_the_papers(size, fields, expected):
  module = UNet(**fields)
  network = LinenNetwork(
    module=module,
    image_shape=(size, size, 3),
    num_classes=module.num_classes,
  )
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  exact = isinstance(expected, int)
  assert (count if exact else round(count / 1e6, 1)) == expected


@pytest.mark.parametrize("style", STYLES)
def test_initial_output_is_exactly_zero(style):
  # The network has 6 output channels, as for the output "both": x0 and eps.
  network = tiny(style=style, out_channels=6)
  params = jit(network.init)(jax.random.key(0))
  output = jit(network.apply)(params, *data())
  assert output.shape == (2, 8, 8, 6)
  assert output.dtype == jnp.float32
  np.testing.assert_array_equal(output, 0)


@pytest.mark.parametrize("style", STYLES)
def test_every_parameter_and_input_changes_the_output(style):
  network = tiny(style=style, num_classes=3)
  params, (x, t) = trained(network), data()
  label = jnp.array([0, 2])

  def total(params, x, t):
    return jnp.sum(jnp.sin(network.apply(params, x, t, Condition(label=label))))

  grads = jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, t)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert jnp.any(grad != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("style", STYLES)
def test_examples_of_a_batch_are_independent(style):
  network = tiny(style=style)
  params, (x, t) = trained(network), data()
  apply = jit(network.apply)
  both = apply(params, x, t)
  np.testing.assert_allclose(
    apply(params, x.at[1].set(0.0), t)[0], both[0], atol=1e-5
  )


@pytest.mark.parametrize("style", STYLES)
def test_bfloat16_output_is_close_and_parameters_stay_float32(style):
  full, half = tiny(style=style), tiny(style=style, dtype="bfloat16")
  params, (x, t) = trained(full), data()
  dtypes = {
    leaf.dtype
    for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))
  }
  assert dtypes == {jnp.dtype("float32")}
  expected = jit(full.apply)(params, x, t)
  actual = jit(half.apply)(params, x, t)
  assert actual.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean((actual - expected) ** 2) / jnp.mean(expected**2))
  # Each of a dozen layers rounds to 8 bits in bfloat16, hence the tolerance.
  assert 1e-4 < error < 3e-2


def test_all_convolutions_but_the_last_compute_in_bfloat16():
  network = tiny(dtype="bfloat16")
  params = jax.eval_shape(network.init, jax.random.key(0))
  text = jit(network.apply).lower(params, *data()).as_text()
  convs = [line for line in text.splitlines() if "convolution(" in line]
  assert len(convs) > 10
  wide = [line for line in convs if "xbf16>" not in line]
  assert len(wide) == 1, "only the last convolution is float32"


def test_rematerialisation_gives_the_same_gradients():
  fields = NANO | {"attention": (8,), "dropout": 0.3}
  plain, remat = tiny(**fields), tiny(**fields, remat=True)
  params, (x, t) = trained(plain), data()
  key = jax.random.key(2)

  def grads(network):
    def loss(params):
      return jnp.mean(network.apply(params, x, t, key=key) ** 2)

    return jax.grad(loss)

  traced = [jit(grads(network)).trace(params) for network in (plain, remat)]
  assert ["remat" in str(each.jaxpr) for each in traced] == [False, True]
  jax.tree.map(
    # The tolerance is for float32 sums in different orders.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    *(each.lower().compile()(params) for each in traced),
  )


def test_only_a_key_enables_dropout():
  network = tiny(**NANO, dropout=0.5)
  params, (x, t) = trained(network), data()
  apply = jit(network.apply)
  off = apply(params, x, t)
  on = apply(params, x, t, key=jax.random.key(0))
  np.testing.assert_array_equal(apply(params, x, t), off)
  assert jnp.max(jnp.abs(on - off)) > 1e-3
  other = apply(params, x, t, key=jax.random.key(1))
  assert jnp.max(jnp.abs(on - other)) > 1e-3
  np.testing.assert_array_equal(apply(params, x, t, key=jax.random.key(0)), on)


def test_labels_change_the_output():
  network = tiny(**NANO, num_classes=3)
  params, (x, t) = trained(network), data()
  apply = jit(network.apply)
  zero, one = (
    apply(params, x, t, Condition(label=jnp.array([0, k]))) for k in (0, 1)
  )
  np.testing.assert_array_equal(zero[0], one[0])
  assert jnp.max(jnp.abs(zero[1] - one[1])) > 1e-3


def tree(**fields):
  """The shapes of a tiny network's parameters, by name."""
  shapes = jax.eval_shape(tiny(**fields).init, jax.random.key(0))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }


def test_each_style_allows_each_resampling():
  assert tree(style="film") == tree(style="film", resampling="block")
  assert tree(style="ddpm") == tree(style="ddpm", resampling="conv")
  film, ddpm = tree(resampling="conv"), tree(style="ddpm", resampling="block")
  for level, way in ((0, "down"), (1, "up")):
    name = f"{way}_{level}_resample"
    assert f"{name}/conv/kernel" in film
    assert f"{name}/conv1/kernel" in ddpm


def test_middle_selects_attention_and_norm_between_the_blocks():
  whole, bare, blocks = (
    {name for name in tree(middle=middle) if name.startswith("middle_a")}
    for middle in ("attention", "bare_attention", "blocks")
  )
  norm = {f"middle_attention/norm/norm/{part}" for part in ("scale", "bias")}
  assert whole - bare == norm
  assert bare < whole
  assert blocks == set()


def test_sinusoid_dim_sets_the_size_of_the_time_embedding():
  assert tree(sinusoid_dim=6)["embed/dense1/kernel"] == (6, 32)


@pytest.mark.parametrize(
  "fields",
  [
    {"padding": "both"},
    {"group_size": 1},
    {"epsilon": 0.1},
    {"cos_first": True},
    {"frequency_shift": 0},
  ],
)
def test_each_minor_field_changes_the_output(fields):
  plain, other = tiny(style="ddpm"), tiny(style="ddpm", **fields)
  params, (x, t) = trained(plain), data()
  actual, expected = (jit(net.apply)(params, x, t) for net in (other, plain))
  assert jnp.max(jnp.abs(actual - expected)) > 1e-3


def test_rectangular_images_have_finite_time_derivatives():
  module = UNet(**(TINY | NANO))
  network = LinenNetwork(module=module, image_shape=(4, 8, 1))
  x = jax.random.normal(jax.random.key(0), (2, 4, 8, 1))
  params = trained(network)

  def apply(t):
    return network.apply(params, x, t)

  t = jnp.array([0.2, 0.7])
  _, tangent = jit(lambda t: jax.jvp(apply, (t,), (jnp.ones(2),)))(t)
  assert tangent.shape == (2, 4, 8, 3)
  assert jnp.all(jnp.isfinite(tangent))
  assert jnp.any(tangent != 0)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"style": "biggan"}, "style is 'biggan'; pass one of film, ddpm"),
    ({"resampling": "fir"}, "resampling is 'fir'; pass one of None, block"),
    ({"padding": "valid"}, "padding is 'valid'; pass one of same, both"),
    ({"middle": "none"}, "middle is 'none'; pass one of attention, bare_att"),
    ({"frequency_shift": 2}, r"frequency_shift is 2; pass a value in \[0, 1\]"),
    ({"sinusoid_dim": 5}, "sinusoid_dim is 5; pass an even number"),
    ({"group_size": 0}, "group_size is 0; pass 1 or more"),
    ({"epsilon": 0.0}, r"epsilon is 0\.0; pass more than 0"),
    ({"dtype": "float16"}, "dtype is 'float16'; pass one of float32"),
    ({"channels": 7}, "channels is 7; pass an even number"),
    ({"multipliers": ()}, "multipliers is"),
    ({"num_blocks": 0}, "num_blocks is 0; pass 1 or more"),
    ({"dropout": 1.0}, r"dropout is 1\.0"),
    ({"multipliers": (1,) * 5}, "sizes divisible by 16"),
    ({"attention": (4, 16)}, r"attention at \[16\] never occurs"),
    ({"num_heads": 3}, "num_heads is 3"),
  ],
)
def test_invalid_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(tiny(**fields).init, jax.random.key(0))


def test_labels_are_required_exactly_when_there_are_classes():
  x, t = data()
  for num_classes, label in ((0, jnp.zeros(2, jnp.int32)), (3, None)):
    module = UNet(**TINY, num_classes=num_classes)
    with pytest.raises(ValueError, match="pass labels exactly when"):
      jax.eval_shape(
        lambda m=module, y=label: m.init(jax.random.key(0), x, t, y, False)
      )


def test_a_module_with_other_num_classes_is_refused():
  with pytest.raises(ValueError, match="the module's is 3"):
    LinenNetwork(module=UNet(**TINY, num_classes=3), image_shape=(8, 8, 3))


def test_the_table_of_networks_has_unet():
  assert NETWORKS["unet"] is UNet
