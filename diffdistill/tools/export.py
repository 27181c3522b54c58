"""The command that writes a finished model in another format."""

from etils import epath

from diffdistill.run import environment, from_config
from diffdistill.run.kept_names import check_out
from diffdistill.system.files import whole_folder
from diffdistill.tools import exporting
from diffdistill.tools.finished import finished_model
from diffdistill.tools.speaking import answer


def export(
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
  kind: str,
  out: epath.Path,
) -> None:
  """Writes a finished model in another format, with its card.

  Args:
    workdir: of the run.
    round_name: whose; the last finished one by default.
    num_steps: of the sampler; by default those that the student was made for.
    kind: diffusers, safetensors or stablehlo.
    out: a folder.

  Raises:
    ValueError: for a model that the format cannot represent.
  """
  if kind not in exporting.FORMATS:
    raise ValueError(
      f"format is {kind!r}; pass one of {', '.join(exporting.FORMATS)}"
    )
  exporting.check_empty(out)
  run = from_config.reopen(workdir)
  environment.check(workdir)
  check_out(out, [workdir], run.config["stages"], folder=True)
  stage, round_, steps = finished_model(run, workdir, round_name, num_steps)
  with whole_folder(out) as new:
    exporting.export(run, workdir, round_, stage, steps, kind, new)
  answer(f"{round_.name} in {steps} steps as {kind}: {out}")
