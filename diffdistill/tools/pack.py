"""The command that writes a data source's images as packed files."""

from typing import Any

from etils import epath

from diffdistill.data.facts import describe
from diffdistill.data.packed import SPLIT
from diffdistill.data.packed import pack as pack_source
from diffdistill.run import from_config
from diffdistill.run.kept_names import check_out
from diffdistill.tools.speaking import answer, say


def pack(config: Any, out: epath.Path) -> None:
  """Writes the images of a config's data source as packed files.

  See data/packed.py for the format.

  Args:
    config: the recipe whose data source is read; the images are resized as the
      recipe says.
    out: the .npz file to write; "{split}" in its name becomes train or test.

  Raises:
    ValueError: if `out` does not end in .npz, or if the data has two splits and
      `out` has no {split}.
  """
  name = str(out)
  for split in ("train", "test"):
    check_out(epath.Path(name.replace(SPLIT, split)))
  run = from_config.build(config)
  facts = describe(run.source, counted=False)
  say(facts.summary(run.devices))
  for line in pack_source(run.source, name, say):
    answer(line)
