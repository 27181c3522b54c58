"""Compares guidance with scores and closed forms, and counts network passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Prediction, from_x0
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.sampling.ddim import DDIM

SCHEDULE = Cosine()
PROCESS = GaussianProcess(schedule=SCHEDULE)
CLASSES = {
  "means": jnp.array([[0.5, 0.3], [-0.6, 0.1]]).reshape(2, 1, 1, 2),
  "std": jnp.array([0.3, 0.2]),
  "logits": jnp.array([0.0, 0.7]),
}
T = jnp.array([0.1, 0.4, 0.6, 0.9])
X = jnp.array([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.1], [0.2, 1.5]]).reshape(
  4, 1, 1, 2
)


def exact(mixture):
  """The exact denoiser of a mixture of Gaussians."""

  def denoise(x_t, t, s=None):
    x0 = GaussianMixture(schedule=SCHEDULE).apply(mixture, x_t, t)
    return from_x0(x0, x_t, *PROCESS.coefficients(t, x_t))

  return denoise


def constant(value):
  return lambda x_t, t, s=None: Prediction(jnp.full_like(x_t, value), x_t)


TOLD = exact({name: value[:1] for name, value in CLASSES.items()})
UNTOLD = exact(CLASSES)


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_x0_and_eps_are_extrapolated_from_the_unconditional_ones(w):
  guided = Guidance(weight=w)(TOLD, UNTOLD)(X, T)
  told, untold = TOLD(X, T), UNTOLD(X, T)
  for name in ("x0", "eps"):
    c, u = (np.asarray(getattr(p, name)) for p in (told, untold))
    np.testing.assert_allclose(
      getattr(guided, name), (1 + w) * c - w * u, rtol=1e-5, atol=1e-5
    )
  # The guided x0 and eps still satisfy alpha x0 + sigma eps = x_t.
  alpha, sigma = PROCESS.coefficients(T, X)
  np.testing.assert_allclose(
    alpha * guided.x0 + sigma * guided.eps, X, atol=1e-5
  )


def test_the_guided_score_is_the_score_of_the_sharpened_density():
  """The sharpened density is p(x|c)^(1 + w) / p(x)^w."""
  w = 1.5

  def log_density(x, t, mixture):
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    variance = (alpha * mixture["std"]) ** 2 + sigma**2
    square = jnp.sum((x[None] - alpha * mixture["means"]) ** 2, axis=(1, 2, 3))
    # Log densities in two dimensions, up to a constant.
    terms = mixture["logits"] - jnp.log(variance) - 0.5 * square / variance
    return jax.nn.logsumexp(terms)

  def sharpened(x, t):
    one = {name: value[:1] for name, value in CLASSES.items()}
    told, untold = (log_density(x, t, mixture) for mixture in (one, CLASSES))
    return (1 + w) * told - w * untold

  score = jax.vmap(jax.grad(sharpened))(X, T)
  guided = Guidance(weight=w)(TOLD, UNTOLD)(X, T)
  _, sigma = PROCESS.coefficients(T, X)
  np.testing.assert_allclose(guided.eps, -sigma * score, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 256])
def test_guided_samples_come_from_the_class_moved_away_from_the_rest(num_steps):
  """Guiding N(m, s^2) away from N(u, s^2) gives N(m + w (m - u), s^2)."""
  w, s = 1.5, 0.2

  def gaussian(mean):
    return {
      "means": jnp.asarray(mean).reshape(1, 1, 1, 2),
      "std": jnp.full((1,), s),
      "logits": jnp.zeros(1),
    }

  m, u = np.array([0.5, 0.3]), np.array([-0.1, 0.2])
  moved = m + w * (m - u)
  sampler = DDIM(process=PROCESS, clip=False)
  key = jax.random.key(0)
  noise = jax.random.normal(key, (64, 1, 1, 2))
  guided, directly = (
    np.asarray(
      sampler(denoise, sampler.start(noise, num_steps), key, num_steps)
    )
    for denoise in (
      Guidance(weight=w)(exact(gaussian(m)), exact(gaussian(u))),
      exact(gaussian(moved)),
    )
  )
  np.testing.assert_allclose(guided, directly, atol=1e-5)
  unguided = sampler(
    exact(gaussian(m)), sampler.start(noise, num_steps), key, num_steps
  )
  assert np.abs(guided - unguided).max() > 0.5
  if num_steps == 256:
    # This is the exact sample: the probability flow scales the noise by s and
    # adds the mean.
    flow = moved.reshape(1, 1, 1, 2) + s * np.asarray(noise)
    # DDIM's error is 0.026 at 64 steps. It is of first order, so four times the
    # steps make it four times smaller.
    np.testing.assert_allclose(guided, flow, atol=0.01)


def test_guidance_acts_at_both_ends_of_its_interval():
  guidance = Guidance(weight=2.0, interval=(0.25, 0.75))
  low, high = np.float32(0.25), np.float32(0.75)
  t = jnp.array(
    [
      0,
      np.nextafter(low, np.float32(0)),
      low,
      0.5,
      high,
      np.nextafter(high, np.float32(1)),
      1,
    ],
    jnp.float32,
  )
  x0 = guidance(constant(1.0), constant(0.0))(jnp.zeros((7, 1, 1, 1)), t).x0
  np.testing.assert_array_equal(np.ravel(x0), [1, 1, 3, 3, 3, 1, 1])


def test_a_traced_scale_multiplies_the_weight_and_0_runs_one_model():
  runs, traces = [], []

  def untold(x_t, t, s=None):
    jax.debug.callback(lambda: runs.append("untold"))
    return constant(0.0)(x_t, t)

  @jax.jit
  def guided(scale):
    traces.append(scale)
    return Guidance(weight=2.0)(constant(1.0), untold, scale)(X, T).x0

  for scale, expected, count in ((0.0, 1, 0), (0.5, 2, 1), (1.0, 3, 2)):
    np.testing.assert_array_equal(guided(scale), jnp.full_like(X, expected))
    jax.effects_barrier()
    assert len(runs) == count
  assert len(traces) == 1


def test_guidance_counts_two_passes_if_it_guides_and_has_a_weight():
  assert Guidance(weight=0.5).passes(guided=True) == 2
  assert Guidance(weight=0.5).passes(guided=False) == 1
  assert Guidance().passes(guided=True) == 1


@pytest.mark.parametrize("weight", [-0.5, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
  with pytest.raises(ValueError, match=rf"weight is {weight}; pass 0 or more"):
    Guidance(weight=weight)


@pytest.mark.parametrize(
  "interval", [(), (0.5,), (0.1, 0.5, 0.9), (0.5, 0.5), (0.6, 0.4), (-0.1, 0.5),
               (0.5, 1.1)],
)  # fmt: skip
def test_invalid_intervals_are_refused(interval):
  with pytest.raises(ValueError, match=r"interval is .*; pass times") as error:
    Guidance(weight=1.0, interval=interval)
  assert str(interval) in str(error.value)
