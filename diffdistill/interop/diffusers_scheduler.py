"""Writes schedulers of diffusers that take the same steps as our samplers.

  ours                   theirs
  ddim, x0 clipped       DPMSolverMultistepScheduler, "dpmsolver++" of order 1
  ddim, nothing clipped  DDIMScheduler
  one_step (x0)          DDIMScheduler
  ancestral, noise 0     DDPMScheduler

Our DDIM recomputes eps from the clipped x0. Diffusers' DDIMScheduler does so
only if each call of a pipeline passes use_clipped_model_output=True; without
it, images differ by up to 0.3. DPM-Solver++ of order 1 is DDIM in terms of x0:

  (1)  x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0

(Lu et al. 2022, DPM-Solver++, Eq. 9), which needs no such argument. Its
thresholding with sample_max_value = 1 is a clip to [-1, 1].
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from diffdistill.interop.model import Model

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
INDICES = 1000  # The number of time steps whose indices a network reads.
# The oldest diffusers whose schedulers read all fields that are written below.
VERSION = "0.26.0"
CLIPPED = "DPMSolverMultistepScheduler"
CLIPPED_FIELDS = {
  "algorithm_type": "dpmsolver++",
  "solver_order": 1,
  "final_sigmas_type": "zero",
  "thresholding": True,
  "sample_max_value": 1.0,
}
# The largest beta, which is the largest float32 below 1. A beta of 1 would
# make the ratio of noise to image infinite. The betas of diffusers, in
# float32, end at this number too.
MAX_BETA = 1 - 2**-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """A student's steps, from the cleanest to the noisiest.

  Sampling takes these steps in the reverse order.

  Attributes:
    times: t of each step, in (0, 1].
    alphas: alpha(t).
    noise: the number that the network reads as the noise level.
  """

  times: Float[np.ndarray, " k"]
  alphas: Float[np.ndarray, " k"]
  noise: Float[np.ndarray, " k"]


def pipeline_of(scheduler: dict[str, Any]) -> str:
  """Returns the class of the pipeline to use with this class of scheduler."""
  name = scheduler["_class_name"]
  # A DDIMPipeline replaces every other scheduler by a DDIMScheduler.
  return {"DDIMScheduler": "DDIMPipeline"}.get(name, "DDPMPipeline")


def _without_clip(config: dict[str, Any]) -> dict[str, Any]:
  """Removes the fields of the clipping that only DDIMScheduler does."""
  own = ("clip_sample", "clip_sample_range")
  fields = {name: value for name, value in config.items() if name not in own}
  if "trained_betas" in fields:
    fields["trained_betas"] = [
      min(beta, MAX_BETA) for beta in fields["trained_betas"]
    ]
  return fields


def scheduler_of(
  model: Model, grid: Grid | None, native: bool
) -> dict[str, Any]:
  """Returns the scheduler_config.json of a scheduler with the sampler's steps.

  Args:
    model: a teacher, or a student with its sampler.
    grid: the steps of a student's sampler; None for a teacher.
    native: whether diffusers can use the model's own schedule and indices.

  Raises:
    ValueError: if diffusers has no scheduler for the sampler.
  """
  outputs = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  if model.output not in outputs:
    raise ValueError(
      f"the model predicts {model.output}, which diffusers' schedulers do not"
      " know; pass --format=safetensors or stablehlo"
    )
  sampler = model.sampler or {"kind": "ddim"}
  config = {
    "_diffusers_version": VERSION,
    "prediction_type": outputs[model.output],
    "clip_sample": sampler.get("clip", True),
    "clip_sample_range": 1.0,
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    **(_betas(model) if native else _table(grid)),
  }
  if sampler["kind"] == "ancestral" and not sampler.get("noise"):
    # Diffusers calls the variance of the posterior "fixed_small".
    variance = {"variance_type": "fixed_small"}
    return {"_class_name": "DDPMScheduler", **variance, **config}
  if sampler["kind"] == "ddim" and config["clip_sample"]:
    return {"_class_name": CLIPPED, **CLIPPED_FIELDS, **_without_clip(config)}
  one_step = sampler["kind"] == "one_step" and sampler.get("form") == "x0"
  if sampler["kind"] == "ddim" or one_step:
    return {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, **config}
  raise ValueError(
    f"the student's sampler is {sampler}, which diffusers has no scheduler for;"
    " pass --format=safetensors or stablehlo"
  )


def _betas(model: Model) -> dict[str, Any]:
  """Returns the fields that define the betas of a schedule of 1000 steps."""
  if model.schedule["kind"] == "cosine_beta":
    return {
      "num_train_timesteps": INDICES,
      "beta_schedule": "squaredcos_cap_v2",
    }
  scaled = {1.0: "linear", 2.0: "scaled_linear"}
  power = model.schedule.get("power", 1.0)
  if power not in scaled:
    raise ValueError(
      f"the schedule's power is {power}, which diffusers does not know; pass"
      " --format=safetensors or stablehlo"
    )
  return {
    "num_train_timesteps": INDICES,
    "beta_schedule": scaled[power],
    "beta_start": model.schedule.get("beta_min", 1e-4),
    "beta_end": model.schedule.get("beta_max", 0.02),
  }


def _table(grid: Grid | None) -> dict[str, Any]:
  """Returns the betas of a schedule that has only the student's steps."""
  # Only a teacher has no grid, and no teacher needs a table.
  assert grid is not None
  squares = grid.alphas.astype(np.float64) ** 2
  ratios = squares / np.concatenate([[1.0], squares[:-1]])
  return {
    "num_train_timesteps": len(squares),
    "trained_betas": [float(beta) for beta in 1 - ratios],
  }
