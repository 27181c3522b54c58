import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import Prediction
from diffdistill.sampling.flow_map import FlowMap

Z = np.random.default_rng(0).normal(size=(16, 1))
KEY = jax.random.key(0)


def exact(toy):
  """The two-time prediction of one Gaussian, whose DDIM step is its flow.

  The flow from x_t ends at X = alpha_s m + sqrt(V_s / V_t) (x_t - alpha_t m),
  with V = (alpha std)^2 + sigma^2. The prediction solves the two equations
  alpha_t x0 + sigma_t eps = x_t and alpha_s x0 + sigma_s eps = X.
  """
  mean, std = float(toy.means[0, 0]), float(toy.std[0])

  def model(x_t, t, s=None):
    assert s is not None
    (a, b), (c, d) = (toy.process.coefficients(time, x_t) for time in (t, s))
    ratio = jnp.sqrt(((c * std) ** 2 + d**2) / ((a * std) ** 2 + b**2))
    end = c * mean + ratio * (x_t - a * mean)
    determinant = a * d - b * c
    return Prediction(
      x0=(d * x_t - b * end) / determinant,
      eps=(a * end - c * x_t) / determinant,
    )

  return model


@pytest.mark.parametrize(
  ("name", "grid"),
  [("cosine", "uniform"), ("edm", "karras"), ("flow", "uniform")],
)
def test_an_exact_network_gives_the_flow_in_any_number_of_steps(
  toys, name, grid
):
  toy = toys(name)
  sampler = FlowMap(process=toy.process, grid=grid, clip=False)
  model, traces = exact(toy), []

  @jax.jit
  def both(x, num_steps):
    traces.append(num_steps)
    jump = sampler.predicted(model, x, KEY, num_steps, num_steps - 1)
    return sampler(model, x, KEY, num_steps), jump

  # The steps end at sigma(0) and the truth at sigma = 0; 1e-3 is for rounding.
  bound = 3 * toy.coefficients(0.0)[1] + 1e-3
  for num_steps in (1, 3):
    t = sampler.time(num_steps, num_steps)
    x = toy.noise(t, Z)
    truth = toy.flow(x, t)
    for image in both(x, num_steps):
      np.testing.assert_allclose(image[:, 0, 0], truth, atol=bound)
  assert len(traces) == 1
  # One step of DDIM goes along the tangent of the flow, to the mean of data.
  x0 = toy.denoise(toy.noise(1.0, Z), jnp.ones(len(Z))).x0[:, 0, 0]
  assert np.abs(x0 - toy.flow(toy.noise(1.0, Z), 1.0)).max() > 5 * bound


def test_only_the_image_at_the_end_is_clipped(toys):
  toy = toys("cosine")
  sampler, x = FlowMap(process=toy.process), jnp.full((1, 1, 1, 1), 0.5)

  def model(x_t, t, s=None):
    return Prediction(x0=jnp.full_like(x_t, 3.0), eps=jnp.zeros_like(x_t))

  t, s = jnp.full(1, 0.5), jnp.full(1, 0.25)
  middle, _ = sampler.step(model, x, (), t, s, KEY, jnp.int32(2))
  np.testing.assert_allclose(
    middle, toy.process.rotate(x, model(x, t), t, s), rtol=1e-6
  )
  assert float(middle[0, 0, 0, 0]) > 1
  for end in (
    sampler(model, x, KEY, 2),
    sampler.predicted(model, x, KEY, 2, 1),
  ):
    np.testing.assert_array_equal(end, 1.0)
