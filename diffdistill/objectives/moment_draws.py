"""The random draws of moment matching: (1) and (2) of moment_matching.py."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffdistill.arrays import Batch, Image, Key, Params, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.timesteps import draw_continuous, draw_discrete
from diffdistill.diffusion.weighting import weight
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.sampler import Sampler

TIMES = ("continuous", "grid")


class Draw(NamedTuple):
  """The draws of equation (2) of moment_matching.py for a batch.

  Args:
    x0: the student's image.
    x_s, s: a noisy image and its time, at which the moments are compared.
    w: the weight of the loss at time s.
  """

  x0: Image
  x_s: Image
  s: Time
  w: Float[Array, " b"]


def draw_times(
  times: str, key: Key, batch_size: int, num_steps: int | Int[Array, ""]
) -> tuple[Time, Time]:
  """Draws the times (t, s) of equation (1) of moment_matching.py.

  Raises:
    ValueError: if the name of the times is unknown.
  """
  key_time, key_step = jax.random.split(key)
  step = jax.random.uniform(key_step, (batch_size,)) / num_steps
  if times == "continuous":
    s = draw_continuous(key_time, batch_size)
    return jnp.minimum(s + step, 1.0), s
  if times == "grid":
    t = draw_discrete(key_time, batch_size, num_steps)
    return t, jnp.maximum(t - step, 0.0)
  raise ValueError(f"times is {times!r}; pass one of {', '.join(TIMES)}")


def draw(
  denoiser: Denoiser,
  student: Params,
  batch: Batch,
  times: str,
  weighting: str,
  num_steps: int | Int[Array, ""],
  key: Key,
  dropout: bool,
) -> Draw:
  """Draws times and images by (1) and (2) of moment_matching.py.

  Args:
    denoiser, student: the student's architecture and weights.
    batch: real images with their conditions.
    times, weighting, dropout: fields of the objective.
    num_steps: the number of the student's steps; may be traced.
    key: the key of all random numbers.
  """
  key_times, key_eps, key_noise, key_dropout = jax.random.split(key, 4)
  image, process = batch["image"], denoiser.process
  t, s = draw_times(times, key_times, image.shape[0], num_steps)
  x_t = process.diffuse(image, jax.random.normal(key_eps, image.shape), t)
  x0 = denoiser(
    student,
    x_t,
    t,
    batch["condition"],
    key=key_dropout if dropout else None,
  ).x0
  mean, std = process.posterior(x_t, jax.lax.stop_gradient(x0), t, s)
  x_s = mean + std * jax.random.normal(key_noise, image.shape)
  w = weight(weighting, process.schedule.logsnr(s))
  return Draw(x0=x0, x_s=x_s, s=s, w=w)


def product(a: Image, b: Image) -> Float[Array, " b"]:
  """Computes a . b of each example, as a mean over pixels."""
  return jnp.mean(a * b, axis=(1, 2, 3))


def check_draws(sampler: Sampler, weighting: str, times: str) -> None:
  """Refuses a sampler, weighting or times that moment matching cannot use.

  Raises:
    ValueError: if the sampler, the weighting or the times do not fit.
  """
  weight(weighting, jnp.zeros(1))
  draw_times(times, jax.random.key(0), 1, 1)
  if not isinstance(sampler, Ancestral) or (
    sampler.grid,
    sampler.first_time,
    sampler.noise,
  ) != ("uniform", 1, 0):
    raise ValueError(
      "a moment-matching student is made for ancestral sampling with noise 0 on"
      f" a uniform grid from t = 1, not {type(sampler).__name__} with noise"
      f" {getattr(sampler, 'noise', None)} on {sampler.grid} from"
      f" {sampler.first_time}; pass sampler.kind=ancestral, noise=0,"
      " grid=uniform and first_time=1"
    )
