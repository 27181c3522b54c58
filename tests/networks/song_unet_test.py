import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.networks import NETWORKS
from diffdistill.networks.layers import downsample, upsample
from diffdistill.networks.network import LinenNetwork
from diffdistill.networks.song_block import filtered_down, filtered_up
from diffdistill.networks.song_unet import SongUNet

TINY = {
  "channels": 8,
  "multipliers": (1, 2),
  "num_blocks": 1,
  "attention": (4,),
  "out_channels": 3,
}
NCSNPP = {"embedding": "fourier", "num_waves": 16, "encoder": "residual"}
STYLES = {
  "ncsnpp": {**NCSNPP, "taps": (1, 3, 3, 1)},
  "skip": {"encoder": "skip", "decoder": "skip", "taps": (1, 3, 3, 1)},
}
# A network of one level, for tests that need no change of resolution.
NANO = {"multipliers": (1,), "attention": ()}
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def tiny(**fields):
  module = SongUNet(**{**TINY, **fields})
  return LinenNetwork(
    module=module, image_shape=(8, 8, 3), num_classes=module.num_classes
  )


def data(batch=2):
  x = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
  # The network expects t = c_noise / 1000; here sigma is from 0.1 to 10.
  return x, jnp.linspace(-6e-4, 6e-4, batch)


CIFAR = {
  "channels": 128,
  "multipliers": (2, 2, 2),
  "num_blocks": 4,
  "attention": (16,),
  "out_channels": 3,
}


@pytest.mark.parametrize(
  ("fields", "classes", "expected"),
  [
    # The expected counts are of NVIDIA's code for CIFAR-10 without augmentation
    # labels. NVIDIA's code does not count the 128 frequencies as parameters.
    (CIFAR, 0, 55_732_739),
    (
      CIFAR | {**NCSNPP, "num_waves": 256, "taps": (1, 3, 3, 1)},
      0,
      56_395_523 + 128,
    ),
    (CIFAR, 10, 55_734_147),
  ],
)
def test_parameter_counts_are_those_of_nvidia_s_code(
  fields, classes, expected, count
):
  module = SongUNet(**fields, num_classes=classes)
  network = LinenNetwork(
    module=module, image_shape=(32, 32, 3), num_classes=classes
  )
  assert count(network) == expected


def test_the_table_of_networks_has_song_unet():
  assert NETWORKS["song_unet"] is SongUNet


@pytest.mark.parametrize("style", STYLES)
def test_initial_output_is_exactly_zero(style):
  network = tiny(**STYLES[style])
  params = jit(network.init)(jax.random.key(0))
  output = jit(network.apply)(params, *data())
  assert output.shape == (2, 8, 8, 3)
  assert output.dtype == jnp.float32
  np.testing.assert_array_equal(output, 0)


@pytest.mark.parametrize("style", STYLES)
def test_every_parameter_and_input_changes_the_output(style, trained):
  network = tiny(**STYLES[style], num_classes=3)
  params, (x, t) = trained(network), data()
  label = jnp.array([0, 2])

  def total(params, x, t):
    return jnp.sum(jnp.sin(network.apply(params, x, t, Condition(label=label))))

  grads = jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, t)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    # Training does not change the frequencies, so their gradient is zero.
    assert jnp.any(grad != 0) == ("frequency" not in name), name


def test_the_frequencies_change_the_output(trained):
  network = tiny(**NANO, embedding="fourier")
  params, (x, t) = trained(network), data()
  apply = jit(network.apply)
  before = apply(params, x, t)
  params["embed"]["frequency"] *= 2
  assert not np.allclose(apply(params, x, t), before, atol=1e-3)


def test_bfloat16_output_is_close_and_parameters_stay_float32(trained):
  fields = STYLES["ncsnpp"]
  full, half = tiny(**fields), tiny(**fields, dtype="bfloat16")
  params, (x, t) = trained(full), data()
  shapes = jax.eval_shape(half.init, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {
    jnp.dtype("float32")
  }
  close = jit(half.apply)(params, x, t)
  assert close.dtype == jnp.float32
  exact = jit(full.apply)(params, x, t)
  assert not np.array_equal(close, exact)
  # Each of a dozen layers rounds to 8 bits in bfloat16, hence the tolerance.
  np.testing.assert_allclose(close, exact, atol=0.1 * np.abs(exact).max())


def test_rematerialisation_gives_the_same_gradients(trained):
  plain, remat = tiny(**NANO), tiny(**NANO, remat=True)
  params, (x, t) = trained(plain), data()

  def grads(network):
    return jit(jax.grad(lambda p: jnp.sum(network.apply(p, x, t) ** 2)))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grads(plain),
    grads(remat),
  )


def test_only_a_key_enables_dropout(trained):
  network = tiny(**NANO, dropout=0.5)
  params, (x, t) = trained(network), data()
  off = jit(network.apply)(params, x, t)
  apply = jit(lambda key: network.apply(params, x, t, key=key))
  first, second = (apply(jax.random.key(i)) for i in (0, 1))
  assert not np.allclose(first, off)
  assert not np.allclose(first, second)
  np.testing.assert_array_equal(apply(jax.random.key(0)), first)


def test_a_label_outside_the_classes_acts_as_no_label(trained):
  network = tiny(**NANO, num_classes=3)
  params, (x, t) = trained(network), data()
  apply = jit(network.apply)
  none = apply(params, x, t, Condition(label=jnp.array([-1, 3])))
  params["embed"]["label"]["kernel"] *= 0
  np.testing.assert_array_equal(
    apply(params, x, t, Condition(label=jnp.array([0, 1]))), none
  )


def image(size=6, channels=2):
  return jax.random.normal(jax.random.key(2), (2, size, size, channels))


def test_two_equal_taps_average_pixels_down_and_repeat_them_up():
  x = image()
  np.testing.assert_allclose(filtered_down(x, (1, 1)), downsample(x), atol=1e-6)
  np.testing.assert_allclose(filtered_up(x, (1, 1)), upsample(x), atol=1e-6)


@pytest.mark.parametrize(
  "taps", [(1, 1), (1, 3, 3, 1), (1, 2), (1, 2, 3, 4, 5, 6)]
)
def test_filtered_down_is_a_convolution_of_stride_two(taps):
  """The filter acts on rows and columns, and pads the border with zeros."""
  x, pad = image(), len(taps) // 2 - 1
  kernel = np.outer(taps, taps) / np.sum(taps) ** 2
  side = x.shape[1] // 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  expected = np.zeros((2, side, side, 2))
  for i in range(side):
    for j in range(side):
      part = padded[:, 2 * i : 2 * i + len(taps), 2 * j : 2 * j + len(taps)]
      expected[:, i, j] = np.einsum("bhwc,hw->bc", part, kernel)
  np.testing.assert_allclose(filtered_down(x, taps), expected, atol=1e-5)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2)])
def test_filtered_up_is_four_times_the_transpose_of_filtered_down(taps):
  x, y = image(6), image(3)
  np.testing.assert_allclose(
    jnp.vdot(filtered_up(y, taps), x),
    4 * jnp.vdot(y, filtered_down(x, taps)),
    rtol=1e-4,
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"embedding": "sine"}, "embedding is 'sine'; pass one of positional, f"),
    ({"encoder": "none"}, "encoder is 'none'; pass one of standard, residual"),
    ({"decoder": "residual"}, "decoder is 'residual'; pass one of standard, s"),
    ({"dtype": "float16"}, "dtype is 'float16'; pass one of"),
    ({"multipliers": ()}, r"multipliers is \(\); pass one number for"),
    ({"channels": 0}, "channels is 0; pass 4 or more"),
    ({"num_blocks": 0}, "num_blocks is 0; pass 1 or more"),
    ({"out_channels": 0}, "out_channels is 0; pass 1 or more"),
    ({"num_waves": 5}, "num_waves is 5; pass an even number"),
    ({"num_waves": 2}, "num_waves is 2; pass 4 or more"),
    ({"taps": (1, 2, 1)}, r"taps is \(1, 2, 1\); pass an even number"),
    ({"taps": (1, -1)}, r"taps is \(1, -1\); pass an even number"),
    ({"taps": ()}, r"taps is \(\); pass an even number"),
    ({"dropout": 1.0}, "dropout is 1.0; pass a value in"),
    ({"attention": (3,)}, r"attention at \[3\] never occurs"),
    ({"multipliers": (1,) * 5}, "images of 8x8 do not halve 4 times"),
  ],
)
def test_invalid_fields_are_refused_in_one_line(fields, message):
  with pytest.raises(ValueError, match=message) as refusal:
    jax.eval_shape(tiny(**fields).init, jax.random.key(0))
  assert "\n" not in str(refusal.value)


def test_a_network_with_classes_refuses_a_missing_label():
  module = SongUNet(**TINY, num_classes=3)
  x, t = data()
  with pytest.raises(ValueError, match="label is None but num_classes is 3"):
    jax.eval_shape(lambda: module.init(jax.random.key(0), x, t, None, False))
