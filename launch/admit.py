"""Checks a training on this machine, before machines are rented for it.

  python launch/admit.py v5litepod-256 --config=imagenet64:moment_matching \\
    --workdir=gs://bucket/runs/moments --expect_devices=256

The first word is a cloud's name of the chips; the others are flags of
`diffdistill train`. A recipe that these devices cannot train is refused in one
line, with status 1 or 2. Otherwise this prints what the stored plan of the
recipe expects. The launchers call this file; it needs diffdistill's packages.

With --carry=FOLDER before the accelerator, it also prints the path of a config
that is a file of the user, or an empty line, and then the flags of `train` for
a host that has this file in FOLDER, quoted for a shell.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def admitted(accelerator: str, words: list[str]) -> bool:
  """Whether this file, run as a program, admits a training."""
  command = (sys.executable, __file__, accelerator, *words)
  return subprocess.run(command, check=False).returncode == 0


def own_file(config: str) -> pathlib.Path | None:
  """The file that a value of --config names; None for an installed recipe."""
  file = pathlib.Path(config.partition(":")[0])
  return file if file.suffix == ".py" and file.is_file() else None


def carried(config: str, folder: str) -> str:
  """The value of --config on a host that has the user's file in a folder."""
  file = own_file(config)
  return f"{folder}/{file.name}{config[len(str(file)) :]}" if file else config


def check(words: list[str]) -> int:
  """Builds the run that the flags of `train` describe.

  Returns:
    The number of its devices, which --expect_devices says.

  Raises:
    ValueError: if `train` would refuse the run.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(HERE.parent))
  jax = importlib.import_module("jax")
  from diffdistill.cli import reading
  from diffdistill.run import from_config
  from diffdistill.training.trainer import check_batches

  values = reading.read("train", words)
  devices = values["expect_devices"] or 1
  jax.config.update("jax_num_cpu_devices", devices)
  try:
    # Because devices are given, this machine's speed chooses no field.
    run = from_config.build(values["config"], devices=jax.devices())
  except FileNotFoundError as error:
    # The hosts have the data, and check the config again.
    print(f"admit.py: not all is checked here: {error}", file=sys.stderr)
  else:
    check_batches(run.stages, run.layout.mesh)
  return devices


def cost(words: list[str], accelerator: str, devices: int) -> str:
  """A line about the cost by the recipe's stored plan on these chips."""
  found = re.search(r"v(4|5e|5p|6e)", re.sub("v5-?lite", "v5e", accelerator))
  chip = found[0] if found else accelerator
  (recipe,) = (w.partition("=")[2] for w in words if w.startswith("--config="))
  recipe = re.sub(r"^.*configs/(\w+)\.py", r"\1", recipe)
  changed = any(word.startswith("--config.") for word in words)
  for path in sorted(HERE.glob(f"plans/{recipe.replace(':', '_')}_*.json")):
    plan = json.loads(path.read_text())
    if (plan["chip"]["name"], plan["num_devices"]) == (chip, devices):
      hours = plan["chip_hours"]
      return (
        f"by its plan, {recipe}{' without overrides' if changed else ''} takes"
        f" at least {hours:,.0f} chip-hours on {plan['topology']}, or"
        f" {hours / devices:,.1f} hours, and probably"
        f" {plan['probable_chip_hours']:,.0f} chip-hours"
      )
  return f"no plan of {recipe} for {devices} {chip} is stored: no cost is known"


def main() -> int:
  if len(sys.argv) < 2:
    print("admit.py: pass ACCELERATOR TRAIN_FLAG...", file=sys.stderr)
    return 2
  accelerator, *words = sys.argv[1:]
  folder = None
  if accelerator.startswith("--carry="):
    folder, (accelerator, *words) = accelerator.partition("=")[2], words
  try:
    devices = check(words)
  except ModuleNotFoundError as error:
    print(
      f"admit.py: {error}, but the config is checked on this machine first; run"
      " `pip install .`",
      file=sys.stderr,
    )
    return 1
  except Exception as error:
    from diffdistill.cli.processes import refuse
    from diffdistill.system.refusals import is_refusal

    if not is_refusal(error):
      raise
    return refuse(error, getattr(error, "status", 1))
  print(f"admit.py: {cost(words, accelerator, devices)}", file=sys.stderr)
  if folder:
    given = {w: w.partition("=")[2] for w in words if w.startswith("--config=")}
    print(*filter(None, map(own_file, given.values())))
    print(
      shlex.join(
        f"--config={carried(given[w], folder)}" if w in given else w
        for w in words
      )
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
