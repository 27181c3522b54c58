"""Images along the way from one noise to another."""

import dataclasses

import jax.numpy as jnp

from diffdistill.arrays import Image, Params
from diffdistill.evaluation.generator import Generator
from diffdistill.sampling.interpolation import slerp


def interpolated(
  generator: Generator,
  params: Params,
  seed: int,
  rows: int,
  points: int,
  num_steps: int,
) -> Image:
  """Images along the arcs from noise 0 to noise 1, from 2 to 3, and so on.

  Args:
    generator: the model; of any batch size.
    params: its weights.
    seed: of the ends.
    rows: how many ways; row r has one label all along.
    points: images a row, 2 or more.
    num_steps: of the sampler.

  Returns:
    rows * points images, row by row.
  """
  count = rows * points
  ends = dataclasses.replace(generator, batch_size=2 * rows)
  ways = dataclasses.replace(generator, batch_size=count)
  noise, labels = ends.noise(seed, 0), ends.labels(0)
  # More than asked for where they are split over several devices.
  last = len(noise) - 1
  arcs = [
    slerp(noise[min(2 * r, last - 1)], noise[min(2 * r + 1, last)], points)
    for r in range(-(-ways.batch_size // points))
  ]
  along = jnp.concatenate(arcs)[: ways.batch_size]
  if labels is not None:
    of_arc = labels[jnp.arange(len(arcs)) % len(labels)]
    labels = jnp.repeat(of_arc, points)[: ways.batch_size]
  return ways.images_of(params, along, labels, num_steps)[:count]
