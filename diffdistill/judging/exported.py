"""Opens an exported model without the run that made it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.diffusion.guidance import Told, told_in
from diffdistill.evaluation.generator import Generator, Sample
from diffdistill.interop import model_folder, stablehlo
from diffdistill.judging.contestants import Contestant
from diffdistill.run.experiment import sample_of
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.system import hosts
from diffdistill.training.sharding import make_mesh, replicated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
  """An exported model, as its folder holds it.

  Args:
    name: the name of the folder.
    sample: makes images from weights, noise and labels.
    params: the weights, on the host; empty if an exported program has them.
    image_shape: the shape (h, w, c) of the images.
    label_counts: the number of images of each class in the data.
    num_steps: the number of steps that a student was made for; 0 for a teacher.
    sampled: text that names the sampler; see `Contestant`.
    told: the lowest and the highest guidance weight that the model can be told;
      empty if it is told none.
    sample_at: makes a `sample` of a told guidance weight.
  """

  name: str
  sample: Sample
  params: Params
  image_shape: tuple[int, int, int]
  label_counts: tuple[int, ...]
  num_steps: int
  sampled: str
  told: tuple[float, ...] = ()
  sample_at: Callable[[Told], Sample] | None = None

  def guided(self, weight: float | None) -> "Exported":
    """This model with another guidance weight; None for its own.

    Raises:
      ValueError: if the model cannot be told this weight.
    """
    if weight is None:
      return self
    if self.sample_at is None:
      raise ValueError(
        f"guidance is {weight}, but {self.name} has the guidance that it was"
        " exported with; leave it out"
      )
    told = told_in(self.told, weight, self.name)
    return dataclasses.replace(self, sample=self.sample_at(told))

  def steps(self, num_steps: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of steps to sample in: a student's own, or the given ones.

    Raises:
      ValueError: if the model is a teacher and no number is given.
    """
    if self.num_steps:
      return (self.num_steps,)
    if not num_steps:
      raise ValueError(
        f"{self.name} is a teacher, which was made for no number of steps; pass"
        " some as num_steps"
      )
    return num_steps

  def generator(
    self, mesh: Mesh, batch_size: int, label: int | None = None
  ) -> Generator:
    """A generator of the model's images; with a label all are of one class."""
    return Generator(
      sample=self.sample,
      image_shape=self.image_shape,
      num_classes=len(self.label_counts),
      label_counts=lambda: self.label_counts,
      label=label,
      mesh=mesh,
      batch_size=batch_size,
    )


def is_exported(folder: epath.Path) -> bool:
  """Whether a folder seems to hold an exported model."""
  names = (stablehlo.DESCRIPTION, model_folder.DESCRIPTION)
  return any((folder / name).exists() for name in names)


def read_exported(folder: epath.Path) -> Exported:
  """Reads a model of `diffdistill export`, as safetensors or StableHLO.

  Raises:
    ValueError: if the folder holds no exported model, or a damaged one.
  """
  is_program = (folder / stablehlo.DESCRIPTION).exists()
  return _program(folder) if is_program else _weights(folder)


def open_exported(
  folder: epath.Path,
  batch_size: int,
  num_steps: tuple[int, ...] = (),
  devices: Sequence[Any] | None = None,
) -> Contestant:
  """Opens a model of `diffdistill export`, to judge it.

  Args:
    folder: the folder of the exported model.
    batch_size: the number of images in a batch.
    num_steps: the numbers of steps for a teacher; a student has its own number.
    devices: the devices that the model runs on; by default all devices.

  Raises:
    ValueError: if the folder holds no exported model or a damaged one, or if it
      holds a teacher and `num_steps` is empty.
  """
  model = read_exported(folder)
  mesh = make_mesh(devices=devices)
  params = hosts.place(model.params, replicated(mesh))
  generator = model.generator(mesh, batch_size)
  return Contestant(
    name=model.name,
    num_steps=model.steps(num_steps),
    generator=generator,
    load=lambda: params,
    sampled=f"{model.sampled} in batches of {generator.batch_size}",
  )


def _weights(folder: epath.Path) -> Exported:
  """Reads an exported model from a folder with weights as safetensors."""
  model = model_folder.load(folder)
  denoiser = denoiser_of(model)
  sampler = sampler_of(model, denoiser)
  sample_at = functools.partial(sample_of, denoiser, sampler)
  usual = Told(weight=model.guidance) if model.told else None
  return Exported(
    name=folder.name,
    sample=sample_at(usual),
    params=model.params,
    image_shape=model.image_shape,
    # If the data set is unknown, all classes are equally frequent.
    label_counts=tuple(model.label_counts or (1,) * model.num_classes),
    num_steps=model.num_steps,
    sampled=f"{sampler} {usual}" if usual else str(sampler),
    told=model.told,
    sample_at=sample_at if usual else None,
  )


def _program(folder: epath.Path) -> Exported:
  """Reads an exported model from a StableHLO program, which holds weights."""
  program, label_counts, num_steps = stablehlo.read_sampler(folder)
  noise_like, *_ = program.in_avals
  height, width, channels = (int(size) for size in noise_like.shape[1:])

  def sample(
    params: Params,
    noise: Image,
    label: Label | None,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    # The program of a stochastic sampler takes a seed; each batch has its own.
    return program.call(noise, label, jax.random.bits(key))

  data = (folder / stablehlo.PROGRAM).read_bytes()
  return Exported(
    name=folder.name,
    sample=sample,
    params={},
    image_shape=(height, width, channels),
    label_counts=tuple(label_counts),
    num_steps=num_steps,
    sampled=f"program {hashlib.sha256(data).hexdigest()}",
  )
