"""Generates images of a model, batch by batch on a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.data.label_order import abbreviated, labels_of
from diffdistill.evaluation.features import round_up
from diffdistill.ranges import (
  SEED,
  BatchSize,
  Classes,
  Range,
  check_number,
  check_ranges,
)
from diffdistill.system import hosts

# A function that makes images in [-1, 1] from weights, noise of unit variance,
# labels, a key and the traced number of steps. The samplers scale the noise to
# their prior.
Sample = Callable[[Params, Image, Label | None, Key, Array], Image]
# A function that predicts the clean images after some of the steps; it also has
# the traced number of steps that are done.
Predict = Callable[[Params, Image, Label | None, Key, Array, Array], Image]
COUNT = Range(1, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
  """Generates a model's image number i, for any i, batch size and mesh.

  The noise of image i depends on (seed, i) only. So a deterministic sampler
  draws the same image for every batch size and mesh, and teacher and student
  with one seed start from the same noise. A stochastic sampler has a key for
  each batch, so its images depend on `batch_size`, but not on the mesh.

  A generator is compiled once: a new `num_steps`, seed or tree of weights (of
  the same shapes) does not compile again.

  Args:
    sample: makes images from weights, noise and labels; see `Sample`.
    predict: predicts images during sampling; None for a model whose steps
      cannot be seen, such as an exported program.
    image_shape: (h, w, c).
    num_classes: the number of classes that the model is given; 0 for an
      unconditional model.
    label_counts: returns the number of images of each class in the data.
      Generated labels have the same frequencies, see `data.label_order`. By
      default, classes are equally frequent, and image i has class i %
      num_classes.
    label: one class for all images, in [0, num_classes); the data must have
      images of it.
    half: whether the noise is rounded to float16, as stored pairs hold it.
    mesh: the devices; each batch is split over all axes of the mesh, which must
      be Auto.
    batch_size: the number of images in a batch, on all devices together; it is
      rounded up to a multiple of the number of devices.
  """

  sample: Sample
  predict: Predict | None = None
  image_shape: tuple[int, int, int]
  num_classes: Classes = 0
  label_counts: Callable[[], Sequence[int]] | None = None
  label: int | None = None
  half: bool = False
  mesh: Mesh
  batch_size: BatchSize

  def __post_init__(self):
    if any(kind != AxisType.Auto for kind in self.mesh.axis_types):
      raise ValueError(
        f"mesh axes must be Auto, got {self.mesh.axis_types}; pass axis_types="
        "(AxisType.Auto,) * n to jax.make_mesh"
      )
    check_ranges(self)
    if self.label is not None and not 0 <= self.label < self.num_classes:
      raise ValueError(
        f"label is {self.label}, but this model has {self.num_classes} classes;"
        f" pass a label from 0 to {self.num_classes - 1}"
        if self.num_classes
        else f"label is {self.label}, but this model has no classes; pass none"
      )
    if self.label is not None and not self._counts[self.label]:
      trained = [i for i, count in enumerate(self._counts) if count]
      raise ValueError(
        f"label is {self.label}, but the data has no image of that class, so"
        f" the model has not learned it; pass one of {abbreviated(trained)}"
      )
    rounded = round_up(self.batch_size, self.mesh)
    object.__setattr__(self, "batch_size", rounded)

  def noise(self, seed: int, start: int) -> Image:
    """Unit Gaussian noise of images start, ..., start + batch_size - 1."""
    return self._draw(*self._scalars(seed, start))[0]

  def labels(self, start: int) -> Label | None:
    """The classes of images start, ..., start + batch_size - 1."""
    labels = self.labels_of(start, self.batch_size)
    return None if labels is None else hosts.place(labels, self._by_row)

  def labels_of(self, first: int, count: int) -> np.ndarray | None:
    """The classes of images first, ..., first + count - 1, on the host."""
    if not self.num_classes:
      return None
    if self.label is not None:
      return np.full(count, self.label, np.int32)
    return labels_of(self._counts, first, count)

  def batches(
    self,
    params: Params,
    seed: int,
    num_images: int,
    num_steps: int,
    first: int = 0,
  ) -> Iterator[Image]:
    """num_images images from `first` on, in [-1, 1], batch by batch.

    The last batch may be smaller.

    Args:
      params: weights, in any sharding on the devices of `mesh`.
      seed: the seed of the noise, in [0, 2^32).
      num_images: the number of images.
      num_steps: the number of steps of the sampler.
      first: the number of the first image.
    """
    check_number("num_images", num_images, COUNT)
    check_number("num_steps", num_steps, COUNT)
    return self._batches(params, seed, num_images, num_steps, first)

  def predictions(
    self,
    params: Params,
    seed: int,
    num_images: int,
    num_steps: int,
    done: int,
  ) -> Iterator[Image]:
    """Predicted clean images of the samplings of `batches`, batch by batch.

    Args:
      params, seed, num_images, num_steps: see `batches`.
      done: how many of the steps are done, from 0 to num_steps - 1.
    """
    check_number("done", done, Range(0, num_steps - 1))
    return self._batches(params, seed, num_images, num_steps, 0, done)

  def images_of(
    self, params: Params, noise: Image, label: Label | None, num_steps: int
  ) -> Image:
    """Makes images in [-1, 1] from batch_size rows of given unit noise.

    A stochastic sampler uses the key of seed 0.
    """
    noise, label = hosts.place((noise, label), self._by_row)
    _, key = self._draw(*self._scalars(0, 0))
    return self._run(params, noise, label, key, *self._scalars(num_steps))

  def trace(self, params: Params) -> jax.stages.Traced:
    """Traces the program of one batch, for weights of these shapes."""
    scalar = jax.ShapeDtypeStruct((), jnp.uint32, sharding=self._everywhere)
    noise, key = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      jax.eval_shape(self._draw, scalar, scalar),
      (self._by_row, self._everywhere),
    )
    labels = None
    if self.num_classes:
      labels = jax.ShapeDtypeStruct(
        (self.batch_size,), jnp.int32, sharding=self._by_row
      )
    return self._run.trace(params, noise, labels, key, scalar)

  def _batches(self, params, seed, num_images, num_steps, first, done=None):
    for start in range(0, num_images, self.batch_size):
      noise, key = self._draw(*self._scalars(seed, first + start))
      labels = self.labels(first + start)
      if done is None:
        steps = self._scalars(num_steps)
        images = self._run(params, noise, labels, key, *steps)
      else:
        steps = self._scalars(num_steps, done)
        images = self._predict(params, noise, labels, key, *steps)
      rows = min(self.batch_size, num_images - start)
      if rows < self.batch_size:
        images = jax.lax.slice_in_dim(images, 0, rows)
      yield images

  def _scalars(self, *values: int) -> tuple[Array, ...]:
    """Puts whole numbers on the mesh explicitly, as transfer guards demand."""
    for value in values:
      check_number("a seed or image number", value, SEED)
    return tuple(
      hosts.place(np.asarray(value, np.uint32), self._everywhere)
      for value in values
    )

  @functools.cached_property
  def _counts(self) -> tuple[int, ...]:
    """The number of images of each class; by default 1."""
    if self.label_counts is None:
      return (1,) * self.num_classes
    counts = tuple(self.label_counts())
    if len(counts) != self.num_classes:
      raise ValueError(
        f"label_counts has {len(counts)} classes, but the model has"
        f" {self.num_classes}; pass one count for each class"
      )
    return counts

  @functools.cached_property
  def _everywhere(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @functools.cached_property
  def _by_row(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

  @functools.cached_property
  def _draw(self):
    """A compiled function of seed and start: noise and the sampler's key."""

    def draw(seed, start):
      key_noise, key_sample = jax.random.split(jax.random.key(seed))
      index = start + jnp.arange(self.batch_size, dtype=jnp.uint32)
      noise = jax.vmap(
        lambda i: jax.random.normal(
          jax.random.fold_in(key_noise, i), self.image_shape, jnp.float32
        )
      )(index)
      # Round in the output of the compiled function. Inside a function, the
      # compiler may drop the conversion to float16 and back.
      noise = noise.astype(jnp.float16 if self.half else jnp.float32)
      return noise, jax.random.fold_in(key_sample, start)

    return jax.jit(draw, out_shardings=(self._by_row, self._everywhere))

  @functools.cached_property
  def _run(self):
    def run(params, noise, labels, key, num_steps):
      steps = num_steps.astype(jnp.int32)
      noise = noise.astype(jnp.float32)
      return self.sample(params, noise, labels, key, steps)

    return jax.jit(run, out_shardings=self._by_row)

  @functools.cached_property
  def _predict(self):
    predict = self.predict
    assert predict is not None  # exported programs have no predictions

    def run(params, noise, labels, key, num_steps, done):
      steps, done = num_steps.astype(jnp.int32), done.astype(jnp.int32)
      noise = noise.astype(jnp.float32)
      return predict(params, noise, labels, key, steps, done)

    return jax.jit(run, out_shardings=self._by_row)
