"""What a reader must know of an exported model, as a README.md."""

import inspect
import json
import re
import sys
from typing import Any

from etils import epath

from diffdistill.evaluation.grids import table
from diffdistill.experiment import Experiment
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.one_step import OneStep
from diffdistill.training.report import costs
from diffdistill.training.stage import Round, Stage

# How each format is sampled from.
USES = {
  "diffusers": """```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER")
images = pipeline(
  batch_size=16,
  num_inference_steps={num_steps},{clipped}
  generator=torch.Generator().manual_seed(0),
).images
```

No pipeline of diffusers gives a label to such a network: where the model has
classes, load `unet/` and `scheduler/` and call them in a loop.""",
  "safetensors": """`model.safetensors` holds the weights, `model.json` says
what they are. Another run distils from them, or judges them, with

```
diffdistill train --config=configs/FILE.py:RECIPE --workdir=DIR \\
  --config.stages.teacher.source=imported:FOLDER
```""",
  "stablehlo": """`python sample.py` writes images to images.npy with jax, numpy
and flatbuffers alone, on a CPU, a GPU or a TPU. `model.stablehlo` holds the
whole sampler, {num_steps} steps, with the weights.""",
}


def model_card(
  run: Experiment,
  workdir: epath.Path,
  round_: Round,
  stage: Stage,
  num_steps: int,
  kind: str,
) -> str:
  """The card of one round's model, in Markdown.

  Args:
    run: the recipe.
    workdir: where it was trained, and judged if it was.
    round_: whose weights.
    stage: of the round.
    num_steps: of the sampler.
    kind: of the format.
  """
  model = run.config["model"]
  license_ = model.get("license", "")
  # DDPM's pipeline has no such argument: there x0 is all that matters.
  sampler = stage.objective.sampler
  clipped = isinstance(sampler, DDIM | OneStep) and sampler.clip
  use = USES[kind].format(
    num_steps=num_steps,
    clipped="\n  use_clipped_model_output=True," if clipped else "",
  )
  paper, *_ = (inspect.getdoc(type(stage.objective)) or "").splitlines()
  header = [
    "---",
    "library_name: diffdistill",
    *([f"license: {license_}"] if license_ else []),
    "tags: [diffusion, distillation, jax]",
    "---",
  ]
  parts = [
    "\n".join(header),
    f"# {round_.name}, {num_steps} steps",
    f"{paper} Made with diffdistill.",
    f"## Use\n\n{use}",
    f"## Teacher\n\nThe teacher: {teacher_of(run)}. Its licence:"
    f" {license_ or 'not stated where it came from'}.",
    f"## Data\n\n{_data(run)}",
    f"## Settings\n\n{_settings(run, round_)}",
    f"## Measured\n\n{_measured(workdir, round_)}",
    f"## Deviations from the paper\n\n{_deviations(stage)}",
  ]
  return "\n\n".join(parts) + "\n"


def teacher_of(run: Experiment) -> str:
  """Where the weights come from that all students of a run begin from."""
  origin = run.config["model"].get("origin")
  sources = [
    stage.source
    for stage in run.stages
    if isinstance(stage, Stage) and stage.source and stage.objective.sampler
  ]
  return origin or ", ".join(sources) or "a teacher trained in the same run"


def _data(run: Experiment) -> str:
  height, width, channels = run.source.image_shape
  fields = run.config["data"]["source"]
  name = " ".join(
    str(fields[f]) for f in ("kind", "name", "split") if f in fields
  )
  classes = f"{run.num_classes} classes" if run.num_classes else "no labels"
  return f"`{name}`: images of {height}x{width}x{channels}, {classes}."


def _settings(run: Experiment, round_: Round) -> str:
  """Every field of the stages that this model is made by, and its cost."""
  stages = run.config["stages"]
  names = [run.rounds[name][0].name for name in run.lineage(round_.name)]
  fields = {
    **{
      part: run.config[part]
      for part in ("model", "sampler", "guidance")
      if part in run.config
    },
    **{f"stages.{name}": stages[name] for name in dict.fromkeys(names)},
  }
  return f"```json\n{json.dumps(fields, indent=2)}\n```"


def _measured(workdir: epath.Path, round_: Round) -> str:
  path = workdir / "evaluation.json"
  damaged: list[str] = []
  spent = costs(workdir, damaged.append).get(round_.name)
  lines = []
  if damaged:
    lines.append("A part of the run's record is damaged and not counted.")
  if spent:
    lines.append(
      f"The last round took {spent[0]:,.0f} network passes, {spent[1]:,.0f}"
      " seconds."
    )
  summary: dict[str, Any] = (
    json.loads(path.read_text()) if path.exists() else {}
  )
  rows = summary.pop("rows", [])
  mine = [row for row in rows if row["model"] in (round_.name, "teacher")]
  if not mine:
    return "\n\n".join([*lines, "It has not been judged."])
  facts = "; ".join(f"{name}: {value}" for name, value in summary.items())
  note = "Distances on another network than Inception are no FID."
  return "\n\n".join([*lines, f"```\n{table(mine)}\n```", facts + ".", note])


def _deviations(stage: Stage) -> str:
  """The sentences that say so where the paper is written down."""
  cls = type(stage.objective)
  module = sys.modules[cls.__module__]
  text = f"{inspect.getdoc(module)}\n\n{inspect.getdoc(cls)}"
  text = " ".join(text.split())
  found = re.findall(r"Unlike the paper,.*?\.(?= [A-Z(]|$)", text)
  return "\n".join(f"* {line}" for line in found) or (
    "None in the paper's own file; those of a published recipe are listed in"
    " its config."
  )
