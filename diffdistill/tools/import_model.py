"""The command that reads another framework's model."""

import jax
from etils import epath

from diffdistill.interop import model_folder
from diffdistill.interop.formats import read_model
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.system.files import whole_folder
from diffdistill.tools import export
from diffdistill.tools.speaking import answer


def import_model(
  source: epath.Path, settings: epath.Path | None, out: epath.Path
) -> None:
  """Writes another framework's model as a folder that a recipe can take.

  Args:
    source: a file or a folder, see interop/formats.py.
    settings: a JSON file of what some formats do not say.
    out: the folder, for stages.teacher.source=imported:OUT.

  Raises:
    ValueError: for a model that is damaged or cannot be represented.
  """
  export.check_empty(out)
  model = read_model(source, settings)
  # What its fields mean is known where recipes are.
  sampler_of(model, denoiser_of(model))
  with whole_folder(out) as new:
    model_folder.save(model, new)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  answer(
    f"{model.origin}: {model.network['kind']} of {count:,} parameters,"
    f" {model.schedule['kind']}, predicts {model.output}: {out}"
  )
