"""A model that was exported, opened again without the run that made it."""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.evaluation.generator import Generator, Sample
from diffdistill.interop import model_folder, stablehlo
from diffdistill.judging.contestants import Contestant
from diffdistill.run.experiment import sample_of
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.system import hosts
from diffdistill.training.sharding import make_mesh, replicated

# (sample, params, image_shape, label_counts, num_steps: 0 of a teacher)
Parts = tuple[Sample, Params, tuple[int, int, int], tuple[int, ...], int]


def open_exported(
  folder: epath.Path,
  batch_size: int,
  num_steps: tuple[int, ...] = (),
  devices: Sequence[Any] | None = None,
) -> Contestant:
  """A model of `diffdistill export`, ready to make images or to be judged.

  Args:
    folder: of safetensors with their model.json, or of StableHLO.
    batch_size: images made at a time.
    num_steps: to judge a teacher at; a student has a number of its own.
    devices: that it runs on; by default those that are here.

  Raises:
    ValueError: where the folder holds none, or a damaged one; for a teacher
      and no number of steps.
  """
  is_program = (folder / stablehlo.DESCRIPTION).exists()
  parts = _program(folder) if is_program else _weights(folder)
  sample, params, image_shape, label_counts, made_for = parts
  if made_for:
    num_steps = (made_for,)
  if not num_steps:
    raise ValueError(
      f"{folder} holds a teacher, which was made for no number of steps; pass"
      " some as num_steps"
    )
  mesh = make_mesh(devices=devices)
  params = hosts.place(params, replicated(mesh))
  generator = Generator(
    sample=sample,
    image_shape=image_shape,
    num_classes=len(label_counts),
    label_counts=lambda: label_counts,
    mesh=mesh,
    batch_size=batch_size,
  )
  return Contestant(
    name=folder.name,
    num_steps=num_steps,
    generator=generator,
    load=lambda: params,
  )


def _weights(folder: epath.Path) -> Parts:
  """Of safetensors."""
  model = model_folder.load(folder)
  denoiser = denoiser_of(model)
  sample = sample_of(denoiser, sampler_of(model, denoiser))
  # Of an unknown data set, classes take turns.
  counts = model.label_counts or (1,) * model.num_classes
  return sample, model.params, model.image_shape, counts, model.num_steps


def _program(folder: epath.Path) -> Parts:
  """Of StableHLO, whose weights are in the program."""
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
    # Its stochastic samplers take a seed: one for each batch.
    return program.call(noise, label, jax.random.bits(key))

  return sample, {}, (height, width, channels), label_counts, num_steps
