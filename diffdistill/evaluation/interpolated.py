"""Generates images along arcs from one noise to another."""

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
  """Generates images on arcs: from noise 0 to noise 1, from 2 to 3, and so on.

  Args:
    generator: the generator of the model, with any batch size.
    params: the weights of the model.
    seed: the seed of the noise at both ends.
    rows: the number of arcs; all images of an arc have the same label.
    points: the number of images along each arc, 2 or more.
    num_steps: the number of steps of the sampler.

  Returns:
    rows * points images, row by row.
  """
  count = rows * points
  ends = dataclasses.replace(generator, batch_size=2 * rows)
  ways = dataclasses.replace(generator, batch_size=count)
  noise, labels = ends.noise(seed, 0), ends.labels(0)
  # The batch size is rounded up to the devices, so there may be more noise than
  # asked.
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
