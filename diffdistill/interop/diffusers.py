"""Reads and writes folders of diffusers pipelines.

A folder holds `unet/` or `transformer/` (config.json and weights) and
`scheduler/`; the folder of a whole pipeline also holds model_index.json. Index
i of a scheduler of n steps is our time t = (i + 1) / n.

A student of k steps is written in one of two ways:

  native   if its network reads DDPM's index and k divides n: the schedule is
           kept, and its steps are indices n j / k - 1 ("trailing" spacing)
  table    otherwise, for U-Nets only: a schedule of only k steps, and a table
           of k embedded noise levels in place of the sinusoid
"""

import json
import re
from typing import Any

import numpy as np
from etils import epath

from diffdistill.interop import diffusers_dit, diffusers_unet
from diffdistill.interop.diffusers_scheduler import (
  INDICES,
  PREDICTIONS,
  VERSION,
  Grid,
  pipeline_of,
  scheduler_of,
)
from diffdistill.interop.foreign_json import read_foreign_json
from diffdistill.interop.model import LICENSE, Model, check
from diffdistill.interop.tensors import Tensors, as_safetensors, read_tensors
from diffdistill.system.files import write_atomically

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# The schedulers that can be read. Their processes preserve the variance, and
# their times are DDPM's time indices.
SCHEDULERS = (
  "DDIMScheduler",
  "DDPMScheduler",
  "DEISMultistepScheduler",
  "DPMSolverMultistepScheduler",
  "DPMSolverSinglestepScheduler",
  "EulerAncestralDiscreteScheduler",
  "EulerDiscreteScheduler",
  "HeunDiscreteScheduler",
  "LMSDiscreteScheduler",
  "PNDMScheduler",
  "UniPCMultistepScheduler",
)


def read(folder: epath.Path) -> Model:
  """Reads the model in a folder of a pipeline, or of a network and a scheduler.

  Raises:
    ValueError: if the model is of another class, or has a field that is not
      represented here; the message is one line and names the field.
  """
  part = next(
    (
      folder / name
      for name in ("unet", "transformer", ".")
      if (folder / name / "config.json").exists()
    ),
    None,
  )
  if part is None:
    raise ValueError(
      f"{folder} has no unet/config.json and no transformer/config.json; pass"
      " the folder of a diffusers pipeline"
    )
  config = _json(part / "config.json")
  schedule, output = _schedule(folder)
  tensors = _weights(part)
  kind = config.get("_class_name")
  if kind == "UNet2DModel":
    network, params, shape, num_classes = diffusers_unet.read(config, tensors)
    null_label = False
  elif kind in ("DiTTransformer2DModel", "Transformer2DModel"):
    network, params, shape, num_classes, null_label = diffusers_dit.read(
      config, tensors
    )
  else:
    raise ValueError(
      f"{part} holds a {kind}; pass a UNet2DModel or a DiTTransformer2DModel"
    )
  return check(
    Model(
      network=network,
      schedule=schedule,
      output=output,
      precondition={"kind": "identity", "noise": "index", "num_steps": INDICES},
      image_shape=shape,
      num_classes=num_classes,
      null_label=null_label,
      params=params,
      origin=f"diffusers {kind} of {folder.resolve().name}",
      license=_license(folder),
    )
  )


def write(model: Model, folder: epath.Path, grid: Grid | None) -> None:
  """Writes a folder that diffusers can load.

  Args:
    model: a teacher that reads DDPM's index, or a student.
    folder: the folder to write into.
    grid: the steps of a student's sampler; None for a teacher.

  Raises:
    ValueError: if diffusers cannot represent the model.
  """
  if model.precondition["kind"] != "identity":
    raise ValueError(
      f"the model's precondition is {model.precondition['kind']}, which"
      " diffusers' networks do not have; pass --format=safetensors or stablehlo"
    )
  if model.network.get("two_times"):
    raise ValueError(
      "the model's network is told a second time (two_times=True), which"
      " diffusers' networks are not; pass --format=safetensors or stablehlo"
    )
  if model.network.get("told_guidance"):
    raise ValueError(
      "the model's network is told a guidance weight (told_guidance=True),"
      " which diffusers' networks are not; pass --format=safetensors or"
      " stablehlo"
    )
  native = _is_native(model, grid)
  kind = model.network["kind"]
  name = {"dit": "transformer", "unet": "unet"}.get(kind)
  if name is None or (kind == "dit" and not native):
    raise ValueError(
      f"the model is a {kind} that reads noise levels of its own kind, which"
      " diffusers has no network for; pass --format=safetensors or stablehlo"
    )
  try:
    if kind == "dit":
      config, tensors = diffusers_dit.write(model)
    else:
      levels = None if native or grid is None else grid.noise
      config, tensors = diffusers_unet.write(model, levels)
  except ValueError as error:
    raise ValueError(
      f"{error}, or pass --format=safetensors or stablehlo"
    ) from error
  scheduler = scheduler_of(model, grid, native)
  _write_part(folder / name, config, tensors)
  _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
  if kind == "unet" and not model.num_classes:
    # Write no model_index.json for a network with labels, because no pipeline
    # of diffusers passes a label to a UNet2DModel.
    index = {
      "_class_name": pipeline_of(scheduler),
      "_diffusers_version": VERSION,
      "scheduler": ["diffusers", scheduler["_class_name"]],
      "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(folder / "model_index.json", index)


def _is_native(model: Model, grid: Grid | None) -> bool:
  """Whether diffusers can use the model's own schedule and indices."""
  reads_index = (
    model.schedule["kind"] in ("linear_beta", "cosine_beta")
    and not model.schedule.get("shift_from")
    and model.schedule.get("num_steps", INDICES) == INDICES
    and model.precondition.get("noise") == "index"
    and model.precondition.get("num_steps", INDICES) == INDICES
  )
  if grid is None:
    if not reads_index:
      raise ValueError(
        "the model is no student, and its network reads another noise level"
        f" than DDPM's index ({model.precondition}); pass a student, or"
        " --format=safetensors or stablehlo"
      )
    return True
  count = len(grid.times)
  uniform = np.allclose(grid.times, np.arange(1, count + 1) / count, atol=1e-7)
  return reads_index and uniform and INDICES % count == 0


def _schedule(folder: epath.Path) -> tuple[dict[str, Any], str]:
  """Returns the fields of model.schedule and what the network predicts."""
  path = folder / "scheduler" / "scheduler_config.json"
  if not path.exists():
    path = folder / "scheduler_config.json"
  if not path.exists():
    raise ValueError(
      f"{folder} has no scheduler/scheduler_config.json, which says what the"
      " network's noise levels are; add the one that it was trained with"
    )
  config = _json(path)

  def refuse(field: str, known: str) -> ValueError:
    return ValueError(
      f"{path}: {field} is {config.get(field)!r}, which is not represented"
      f" here; pass a model with {known}"
    )

  if config.get("_class_name") not in SCHEDULERS:
    raise refuse("_class_name", f"one of {', '.join(SCHEDULERS)}")
  steps = config.get("num_train_timesteps", INDICES)
  if steps != INDICES:
    raise refuse("num_train_timesteps", str(INDICES))
  if config.get("trained_betas") is not None:
    raise refuse("trained_betas", "a named beta_schedule")
  if config.get("rescale_betas_zero_snr"):
    raise refuse("rescale_betas_zero_snr", "False")
  output = PREDICTIONS.get(config.get("prediction_type", "epsilon"))
  if output is None:
    raise refuse("prediction_type", ", ".join(PREDICTIONS))
  kind = config.get("beta_schedule", "linear")
  if kind == "squaredcos_cap_v2":
    return {"kind": "cosine_beta", "num_steps": steps}, output
  powers = {"linear": 1.0, "scaled_linear": 2.0}
  if kind not in powers:
    raise refuse("beta_schedule", f"{', '.join(powers)} or squaredcos_cap_v2")
  fields = {
    "kind": "linear_beta",
    "num_steps": steps,
    "beta_min": float(config.get("beta_start", 1e-4)),
    "beta_max": float(config.get("beta_end", 0.02)),
    "power": powers[kind],
  }
  return fields, output


def _weights(part: epath.Path) -> Tensors:
  for name in WEIGHTS:
    if (part / name).exists():
      return read_tensors(part / name)
  raise ValueError(f"{part} has no {' and no '.join(WEIGHTS)}; add its weights")


def _license(folder: epath.Path) -> str:
  """Returns the licence in the model card's header; empty if there is none."""
  path = folder / "README.md"
  if not path.exists():
    return ""
  text = path.read_bytes().decode(errors="replace")
  header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
  line = rf"""^license: *["']?({LICENSE})["']? *$"""
  found = header and re.search(line, header[1], re.MULTILINE)
  return found[1] if found else ""


def _json(path: epath.Path) -> dict[str, Any]:
  return read_foreign_json(path, "fetch it again")


def _write_part(
  part: epath.Path, config: dict[str, Any], tensors: Tensors
) -> None:
  data = as_safetensors(tensors, metadata={"format": "pt"})
  write_atomically(part / WEIGHTS[0], data)
  _write_json(part / "config.json", {"_diffusers_version": VERSION, **config})


def _write_json(path: epath.Path, fields: dict[str, Any]) -> None:
  write_atomically(path, json.dumps(fields, indent=2) + "\n")
