"""The command that writes a finished model in the format of another program."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffdistill.fields import plain
from diffdistill.interop import diffusers, model_folder, stablehlo
from diffdistill.interop.model import Model
from diffdistill.reporting.model_card import (
  learned_from_data,
  model_card,
  teacher_of,
)
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.run.kept_names import check_out
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.system.files import whole_folder, write_atomically
from diffdistill.tools.finished import finished_model
from diffdistill.tools.speaking import answer
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training

FORMATS = ("diffusers", "safetensors", "stablehlo")


def export(
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
  kind: str,
  out: epath.Path,
) -> None:
  """Writes a finished model in another format, with its model card.

  Args:
    workdir: the folder of the run.
    round_name: the model; None means the last finished one.
    num_steps: the number of sampler steps. None means the number that a student
      was made for, or the largest at which a teacher is judged.
    kind: one of `FORMATS`.
    out: a new or empty folder.

  Raises:
    ValueError: if the format cannot hold the model, or if the evaluation that
      the card quotes is damaged.
  """
  if kind not in FORMATS:
    raise ValueError(f"format is {kind!r}; pass one of {', '.join(FORMATS)}")
  check_empty(out)
  run = from_config.reopen(workdir)
  environment.check(workdir)
  check_out(out, [workdir], run.config["stages"], folder=True)
  stage, round_, steps = finished_model(run, workdir, round_name, num_steps)
  with whole_folder(out) as new:
    _write(run, workdir, round_, stage, steps, kind, new)
  answer(f"{round_.name} in {steps} steps as {kind}: {out}")


def _write(
  run: Experiment,
  workdir: epath.Path,
  round_: Round,
  stage: Training,
  num_steps: int,
  kind: str,
  out: epath.Path,
) -> None:
  """Writes the files of one model, with the model card last."""
  sampler = stage.objective.sampler
  assert sampler is not None  # an exported model makes images, by a sampler
  # Make the card before any file is written, because it may refuse the model.
  card = model_card(run, workdir, round_, stage, num_steps, kind)
  model = model_of(run, workdir, round_, sampler, num_steps)
  if kind == "diffusers":
    is_student = bool(round_.num_steps)
    grid = grid_of(run, sampler, num_steps) if is_student else None
    if not is_student and diffusers.INDICES % num_steps:
      raise ValueError(
        f"num_steps is {num_steps}, but diffusers' steps are whole indices of"
        f" {diffusers.INDICES}; pass --num_steps=100 or another divisor"
      )
    diffusers.write(model, out, grid)
  elif kind == "safetensors":
    model_folder.save(model, out)
  else:
    portable = dataclasses.replace(run, denoiser=run.denoiser.portable)
    guidance = run.usual_guidance(round_)
    generator = portable.generator(sampler, 1, guidance=guidance)
    program = stablehlo.export_sampler(
      generator.sample,
      model.params,
      model.image_shape,
      model.num_classes,
      num_steps,
    )
    stablehlo.write_sampler(
      out, program, model.image_shape, model.label_counts, num_steps
    )
  write_atomically(out / "README.md", card)


def check_empty(out: epath.Path) -> None:
  """Refuses a folder that is not empty.

  Raises:
    ValueError: if `out` is a file, the current folder, or a folder that is not
      empty.
  """
  if os.path.realpath(out) == os.getcwd():
    raise ValueError(
      f"out is {out}, the current folder, which cannot be replaced; pass a new"
      " folder"
    )
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(
      f"out is {out}, where something is already; pass a new or empty folder"
    )


def model_of(
  run: Experiment,
  workdir: epath.Path,
  round_: Round,
  sampler: Sampler,
  num_steps: int,
) -> Model:
  """A finished model: its weights and everything needed to use them."""
  fields = plain(run.config["model"])
  teacher = teacher_of(run, round_.name)
  origin = teacher
  if round_.num_steps:
    origin = f"{round_.name}, distilled from {teacher}"
  if learned_from_data(round_):
    origin = f"{round_.name}, trained from data alone"
  params = run.product(workdir, round_.name)
  told = run.rounds[round_.name][0].told
  return Model(
    network=dict(fields["network"]),
    schedule=dict(fields["schedule"]),
    output=fields.get("output", "x0"),
    precondition={"kind": "identity", **fields.get("precondition", {})},
    image_shape=run.source.image_shape,
    num_classes=run.num_classes,
    label_counts=run.source.label_counts if run.num_classes else (),
    null_label=run.denoiser.null_label is not None,
    params=jax.device_get(params),
    origin=origin,
    license=fields.get("license", ""),
    sampler=sampler_fields(sampler) if round_.num_steps else None,
    num_steps=num_steps if round_.num_steps else 0,
    told=told,
    guidance=run.guidance.weight if told else 0.0,
  )


def sampler_fields(sampler: Sampler) -> dict[str, Any]:
  """The fields of a config's sampler section that build this sampler."""
  (kind,) = (name for name, cls in SAMPLERS.items() if cls is type(sampler))
  fields = {
    field.name: getattr(sampler, field.name)
    for field in dataclasses.fields(sampler)
    if field.name != "process"
  }
  return {"kind": kind, **fields}


def grid_of(
  run: Experiment, sampler: Sampler, num_steps: int
) -> diffusers.Grid:
  """The times and noise levels of a sampler, as a scheduler of diffusers.

  Raises:
    ValueError: if the sampler's first noise does not have variance 1, or if the
      schedule does not preserve the variance.
  """
  schedule, precondition = (
    run.denoiser.process.schedule,
    run.denoiser.precondition,
  )
  times = jnp.stack([sampler.time(i + 1, num_steps) for i in range(num_steps)])
  alpha, sigma = schedule.alpha(times), schedule.sigma(times)
  unit = jnp.hypot(alpha, sigma)
  if abs(float(sigma[-1]) - 1) > 1e-3 or float(abs(unit - 1).max()) > 1e-5:
    raise ValueError(
      f"the sampler begins with noise of deviation {float(sigma[-1]):.4g}, and"
      " diffusers' with 1 on a variance-preserving schedule; pass"
      " --format=safetensors or stablehlo"
    )
  scaling = precondition.scaling(schedule, times)
  return diffusers.Grid(
    times=np.asarray(times),
    alphas=np.asarray(alpha),
    noise=np.asarray(scaling.c_noise),
  )
