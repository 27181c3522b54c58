"""Tests of the second time s, features and time derivatives of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  LinearBeta,
  RectifiedFlow,
)
from diffdistill.networks import NETWORKS
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.network import LinenNetwork, add_branches
from diffdistill.planning.flops import count_flops

UNET = {"channels": 8, "multipliers": (1, 1), "num_blocks": 1}
FIELDS = {
  "unet": UNET,
  "song_unet": UNET,
  "uvit": {"channels": (8, 8), "num_blocks": (1, 2), "head_dim": 4},
  "dit": {"width": 8, "depth": 3, "num_heads": 2},
  "mlp": {"width": 8, "depth": 2},
}
ALL_REDUCED = {"dtype": "bfloat16", "remat": True}
every_network = pytest.mark.parametrize("kind", FIELDS)
T, S = jnp.array([0.7, 0.3]), jnp.array([0.4, 0.1])


def network_of(kind, **fields):
  module = NETWORKS[kind](**FIELDS[kind], out_channels=1, **fields)
  return LinenNetwork(module=module, image_shape=(4, 4, 1))


def images():
  return jax.random.normal(jax.random.key(1), (2, 4, 4, 1))


def denoiser_of(kind, **fields):
  return Denoiser(
    network=network_of(kind, **fields),
    process=GaussianProcess(schedule=Cosine()),
    output="v",
  )


@every_network
def test_adding_a_second_time_to_trained_weights_keeps_the_output(
  kind, trained
):
  one, two = network_of(kind), network_of(kind, two_times=True)
  assert (one.two_times, two.two_times) == (False, True)
  params, x = trained(one), images()
  filled = add_branches(two, params, jax.random.key(0))
  shapes = jax.eval_shape(two.init, jax.random.key(0))
  assert jax.tree.structure(shapes) == jax.tree.structure(filled)
  assert add_branches(two, filled, jax.random.key(0)) is filled
  assert add_branches(one, params, jax.random.key(0)) is params
  apply = jax.jit(two.apply)
  expected = jax.jit(one.apply)(params, x, T)
  for s in (None, S):
    np.testing.assert_allclose(
      apply(filled, x, T, s=s), expected, rtol=1e-5, atol=1e-6
    )
  # With trained weights, s changes the output, and s=None means s = t.
  params = trained(two)
  far, near, same = (apply(params, x, T, s=s) for s in (S, T, None))
  np.testing.assert_allclose(near, same, rtol=1e-6, atol=1e-6)
  assert jnp.max(jnp.abs(far - near)) > 1e-3
  with pytest.raises(ValueError, match=r"takes no target time s; pass s=None"):
    one.apply(params, x, T, s=S)


@every_network
def test_an_added_second_time_has_a_gradient_at_once(kind, trained):
  network, x = network_of(kind, two_times=True), images()
  params = add_branches(network, trained(network_of(kind)), jax.random.key(0))

  def loss(params, s):
    return jnp.sum(jnp.sin(network.apply(params, x, T, s=s)))

  grad = jax.jit(jax.grad(loss))
  assert jnp.any(grad(params, S)["embed"]["gap"]["dense2"]["kernel"] != 0)
  # A teacher, whose times are equal, leaves the branch as it is: zero.
  for gradient in jax.tree.leaves(grad(params, None)["embed"]["gap"]):
    assert not jnp.any(gradient)


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param(kind, marks=pytest.mark.slow if kind == "song_unet" else ())
    for kind in FIELDS
  ],
)
def test_derivatives_of_an_exact_denoiser_agree_with_finite_differences(
  kind, trained
):
  exact = denoiser_of(kind, two_times=True).exact
  params, x = trained(network_of(kind, two_times=True)), images()
  along = (0.3 * images()[::-1], jnp.array([1.0, -0.5]), jnp.array([0.7, 1.0]))

  @jax.jit
  def both(x, t, s):
    def value(h):
      inputs = (a + h * b for a, b in zip((x, t, s), along, strict=True))
      x_h, t_h, s_h = inputs
      return exact(params, x_h, t_h, s=s_h).x0

    tangent = jax.jvp(value, (jnp.float32(0),), (jnp.float32(1),))[1]
    # The finite difference has an error of order h^4. Since the embedding of t
    # multiplies t by 1000, h must be small. lax.map compiles the network once.
    h = 2e-4
    values = jax.lax.map(value, h * jnp.array([1.0, -1.0, 2.0, -2.0]))
    near, far = values[0] - values[1], values[2] - values[3]
    return tangent, (8 * near - far) / (12 * h)

  tangent, difference = both(x, T, S)
  assert tangent.dtype == jnp.float32
  error = jnp.max(jnp.abs(tangent - difference)) / jnp.max(jnp.abs(tangent))
  assert error < 5e-3


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), RectifiedFlow(),
                                      EDM()])  # fmt: skip
@pytest.mark.parametrize(
  "precondition",
  [*(Identity(noise=unit) for unit in ("angle", "time", "index")),
   EDMPrecondition()],
)  # fmt: skip
def test_the_network_input_for_s_is_smooth_from_0_to_t(schedule, precondition):
  t = jnp.array([1e-3, 0.3, 1.0])

  def aim(s):
    return precondition.aim(schedule, t, s)

  noise = precondition.scaling(schedule, t).c_noise
  np.testing.assert_allclose(aim(t), noise, atol=1e-6)
  values, slopes = jax.jvp(aim, (0 * t,), (1 + 0 * t,))
  assert np.isfinite(values).all()
  # The slope in s may be neither 1/sigma(0), 1e5 for rectified flow, nor 0, as
  # it would be for a clipped s.
  assert (np.asarray(slopes) < 40).all()
  assert (np.asarray(slopes) > 0.01).all()
  assert (np.asarray(noise - values) > 0).all()


@every_network
def test_look_returns_the_prediction_and_distinct_float32_features(
  kind, trained
):
  denoiser = denoiser_of(kind)
  params, x = trained(denoiser.network), images()
  names = denoiser.features

  @jax.jit
  def look(params, x):
    return denoiser.look(params, x, T, names=names)

  prediction, features = look(params, x)
  expected = jax.jit(denoiser)(params, x, T)
  np.testing.assert_allclose(prediction.x0, expected.x0, rtol=1e-4, atol=1e-5)
  assert set(features) == set(names)
  for value in features.values():
    assert value.ndim == 4
    assert value.dtype == jnp.float32
  values = [np.asarray(value).ravel()[:8] for value in features.values()]
  assert len(np.unique(np.round(values, 5), axis=0)) == len(names)


@every_network
def test_a_pass_up_to_a_feature_costs_less_than_a_whole_pass(kind):
  denoiser, x = denoiser_of(kind), images()
  shapes = jax.eval_shape(denoiser.network.init, jax.random.key(0))

  def cost(name):
    def feature(params, x):
      return denoiser.look(params, x, T, names=(name,))[1][name]

    closed = jax.make_jaxpr(feature)(shapes, x)
    used = [True] * len(closed.out_avals)
    jaxpr, _ = jax.interpreters.partial_eval.dce_jaxpr(closed.jaxpr, used)
    return count_flops(closed.replace(jaxpr=jaxpr))

  whole = count_flops(jax.make_jaxpr(lambda p, x: denoiser(p, x, T))(shapes, x))
  costs = [cost(name) for name in denoiser.features]
  # Deeper features cost more, but every feature costs less than a whole pass.
  assert costs == sorted(set(costs))
  assert costs[-1] < whole


def test_unknown_features_are_refused_with_the_known_names():
  denoiser, x = denoiser_of("unet"), images()
  for names in (("middle", "block_07"), ()):
    with pytest.raises(
      ValueError, match=r"UNet has down_0, down_1, middle, up_1, up_0; pass"
    ) as refusal:
      denoiser.look({}, x, T, names=names)
    assert "\n" not in str(refusal.value)
  mixture = Denoiser(
    network=GaussianMixture(schedule=Cosine()), process=denoiser.process
  )
  assert mixture.features == ()
  assert mixture.exact is mixture
  with pytest.raises(ValueError, match="GaussianMixture has none"):
    mixture.look({}, x, T, Condition(), names=("middle",))


@every_network
def test_an_exact_denoiser_has_full_precision_and_the_same_other_fields(kind):
  fields = {} if kind == "mlp" else dict(ALL_REDUCED)
  if kind in ("uvit", "dit"):
    fields["attention"] = "cudnn"
  reduced = denoiser_of(kind, two_times=True, **fields)
  assert reduced.exact.network.module == network_of(kind, two_times=True).module
  assert reduced.exact.network.precision == "highest"


def test_an_exact_denoiser_keeps_the_heights_that_have_attention():
  half = denoiser_of("unet", attention=(4,), **ALL_REDUCED)
  exact = half.exact.network.module
  assert exact == network_of("unet", attention=(4,)).module
