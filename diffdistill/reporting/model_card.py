"""The model card of an exported model, which is its README.md.

A card states what was done, not what was planned. It holds nothing private,
such as a path or the name of a machine. Text that came with an imported model
is escaped.
"""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from diffdistill.evaluation.shown import Table
from diffdistill.judging.summaries import FILE, read_summary
from diffdistill.run.experiment import Experiment
from diffdistill.training.done import done
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.report import costs
from diffdistill.training.stage import OUTSIDE, Round
from diffdistill.training.training_stage import Training

# The licence in the model card's front matter if nobody has stated a licence.
NO_LICENSE = "unknown"
LEFT_OUT = "(a path, left out)"

# Instructions in the model card for using each format of an exported model.
USES = {
  "diffusers": """```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER")
images = pipeline(
  batch_size=16,
  num_inference_steps={num_steps},
  generator=torch.Generator().manual_seed(0),
).images
```

No pipeline of diffusers gives a label to such a network: where the model has
classes, load `unet/` and `scheduler/` and call them in a loop.""",
  "safetensors": """`model.safetensors` holds the weights, `model.json` says
what they are. Another run distils from them, or judges them, with

```
diffdistill train --config=RECIPE --workdir=DIR \\
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
  stage: Training,
  num_steps: int,
  kind: str,
) -> str:
  """The card of one round's model, in Markdown.

  Args:
    run: the recipe.
    workdir: the folder where the model was trained, and perhaps judged.
    round_: the round of the model.
    stage: the stage of the round.
    num_steps: the number of sampler steps.
    kind: the format, a key of USES.

  Raises:
    ValueError: if the evaluation of the run is damaged.
  """
  use = USES[kind].format(num_steps=num_steps)
  if stage.told:
    low, high = stage.told
    use += (
      f"\n\nThe model is told a guidance weight: {run.guidance.weight:g}, if"
      f" none is given. It has learned weights from {low:g} to {high:g}; 0 is"
      " no guidance."
    )
  header = yaml.safe_dump(
    {
      "library_name": "diffdistill",
      "license": _license(run) or NO_LICENSE,
      "tags": ["diffusion", "distillation", "jax"],
    },
    sort_keys=False,
  )
  paper, *_ = (inspect.getdoc(type(stage.objective)) or "").splitlines()
  if stage.source:
    paper = "Not trained in this run, but taken as it came."
  parts = [
    f"---\n{header}---",
    f"# {escaped(round_.name)}, {num_steps} steps",
    f"{paper} Made with diffdistill.",
    f"## Use\n\n{use}",
    f"## Teacher\n\n{_teacher(run, workdir, round_)}",
    f"## Data\n\n{_data(run)}",
    f"## Settings\n\n{_settings(run, workdir, round_)}",
    f"## Measured\n\n{_measured(workdir, round_)}",
  ]
  if not stage.source:
    parts.append(f"## Deviations from the paper\n\n{_deviations(stage)}")
  return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
  """Text as one line of Markdown that shows exactly these characters.

  In Markdown, a backslash escapes any ASCII punctuation (CommonMark 0.31, 2.4).
  """
  line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
  return re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", line)


def teacher_of(run: Experiment, name: str) -> str:
  """The origin of the weights that a model began with, in a few words.

  Args:
    run: the recipe.
    name: the name of the model's round.
  """
  return {
    "imported": run.config["model"].get("origin") or "an imported teacher",
    "path": "a teacher trained in another run",
    "": "a teacher trained in the same run",
  }[_outside(run, name)]


def _outside(run: Experiment, name: str) -> str:
  """The kind of the source outside this run that gave a round its weights.

  The result is "" if the weights come from this run."""
  for made in run.lineage(name):
    stage, round_ = run.rounds[made]
    for place in (stage.source, round_.frozen.get("teacher", "")):
      if place.startswith(OUTSIDE):
        return place.partition(":")[0]
  return ""


def _license(run: Experiment) -> str:
  """The licence of the imported teacher; "" if it is not known."""
  return run.config["model"].get("license", "")


def learned_from_data(round_: Round) -> bool:
  """Whether the model is a student that has no teacher."""
  return bool(round_.num_steps) and "teacher" not in round_.frozen


def _teacher(run: Experiment, workdir: epath.Path, round_: Round) -> str:
  if learned_from_data(round_):
    return "It has no teacher: it was trained from the data alone."
  origin = f"The teacher: {escaped(teacher_of(run, round_.name))}"
  outside = _outside(run, round_.name)
  if outside == "imported":
    license_ = escaped(_license(run)) or "not stated where it came from"
    return f"{origin}. It was imported. Its licence: {license_}."
  if outside:
    return f"{origin}."
  first = next(iter(run.lineage(round_.name)))
  updates = done(workdir, first).updates
  trained = f", for {updates:,} updates" if updates else ""
  return f"{origin}{trained}. No licence is stated."


def _data(run: Experiment) -> str:
  height, width, channels = run.source.image_shape
  fields = run.config["data"]["source"]
  name = " ".join(
    str(fields[f]) for f in ("kind", "name", "split") if f in fields
  )
  classes = f"{run.num_classes} classes" if run.num_classes else "no labels"
  return f"`{name}`: images of {height}x{width}x{channels}, {classes}."


def _settings(run: Experiment, workdir: epath.Path, round_: Round) -> str:
  """The config fields of each stage that led to this model, as they ran."""
  made = list(run.lineage(round_.name))
  model = {
    name: value
    for name, value in run.config["model"].items()
    if name not in ("origin", "license")
  }
  fields = {
    "model": model,
    **{n: run.config[n] for n in ("sampler", "guidance") if n in run.config},
  }
  for name in dict.fromkeys(run.rounds[name][0].name for name in made):
    rounds = [n for n in made if run.rounds[n][0].name == name]
    fields[f"stages.{name}"] = _as_run(run, workdir, name, rounds)
  public = _public(fields, frozenset(run.rounds))
  return f"```json\n{json.dumps(public, indent=2)}\n```"


def _as_run(
  run: Experiment, workdir: epath.Path, name: str, rounds: list[str]
) -> Any:
  """The config fields of a stage, with the updates that were really done."""
  stage, _ = run.rounds[rounds[0]]
  fields = dict(run.config["stages"][name])

  def trained(stage: Training) -> dict[str, Any]:
    fields.pop("source", None)
    score = stage.select.by if stage.select else ""
    spent = {n: done(workdir, n, score) for n in rounds}
    # The config's num_updates may be only an upper limit, and long rounds do
    # twice as many updates.
    fields["num_updates"] = {
      n: work.updates or "not recorded" for n, work in spent.items()
    }
    chosen = {n: work.chosen for n, work in spent.items() if work.chosen}
    return {**fields, "weights_of_update": chosen} if chosen else fields

  def taken(stage: Training) -> dict[str, Any]:
    return {"source": stage.source}

  def made(stage: Pairs) -> dict[str, Any]:
    if not stage.minutes:
      return fields
    settled = stage.settled(workdir / name)
    count = settled - stage.held_out if settled else "not recorded"
    return {**fields, "num_pairs": count}

  return stage.by_kind(train=trained, take=taken, make=made)


def _public(value: Any, names: frozenset[str]) -> Any:
  """Removes every path of the training machine from a part of a config.

  Args:
    value: a part of the config.
    names: the names of rounds, which have slashes but are no paths.
  """
  if isinstance(value, Mapping):
    return {
      key: _public(part, names)
      for key, part in value.items()
      if key != "path" or not part
    }
  if isinstance(value, list | tuple):
    return [_public(part, names) for part in value]
  if not isinstance(value, str) or value in names:
    return value
  if value.startswith(OUTSIDE):
    kind = value.partition(":")[0]
    return {"path": "another run", "imported": "an imported model"}[kind]
  return LEFT_OUT if re.search(r"[/\\]|^~", value) else value


def _measured(workdir: epath.Path, round_: Round) -> str:
  path = workdir / FILE
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
  summary = read_summary(path) if path.exists() else {}
  rows = summary.pop("rows", [])
  mine = [row for row in rows if row["model"] in (round_.name, "teacher")]
  if not mine:
    return "\n\n".join([*lines, "It has not been judged."])
  facts = "; ".join(
    escaped(f"{name}: {without_folders(value)}")
    for name, value in summary.items()
  )
  note = "Distances on another network than Inception are no FID."
  return "\n\n".join([*lines, f"```\n{Table(mine)!r}\n```", facts + ".", note])


def without_folders(value: Any) -> Any:
  """The last part of a path, without the folders of somebody's machine."""
  if isinstance(value, str) and re.match(r"~|\S*[/\\]", value):
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
  return value


def _deviations(stage: Training) -> str:
  """Finds the objective's docstring sentences with "Unlike the paper,"."""
  cls = type(stage.objective)
  module = sys.modules[cls.__module__]
  text = f"{inspect.getdoc(module)}\n\n{inspect.getdoc(cls)}"
  text = " ".join(text.split())
  found = re.findall(r"Unlike the paper,.*?\.(?= [A-Z(]|$)", text)
  return "\n".join(f"* {line}" for line in found) or (
    "The paper's own file states none; a published recipe lists its deviations"
    " in its config."
  )
