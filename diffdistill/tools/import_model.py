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
  """Writes another framework's model as a folder that a recipe can use.

  A recipe uses the folder OUT with stages.teacher.source=imported:OUT.

  Args:
    source: the file or folder of the model, see interop/formats.py.
    settings: a JSON file with facts that the format does not state, or None.
    out: a new or empty folder.

  Raises:
    ValueError: if the model is damaged, or cannot be represented here.
  """
  export.check_empty(out)
  model = read_model(source, settings)
  # Build the denoiser and the sampler: this refuses a model that recipes cannot
  # use.
  sampler_of(model, denoiser_of(model))
  with whole_folder(out) as new:
    model_folder.save(model, new)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  answer(
    f"{model.origin}: {model.network['kind']} of {count:,} parameters,"
    f" {model.schedule['kind']}, predicts {model.output}: {out}"
  )
