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
  """Writes a config's images as files of bytes, see data/packed.py.

  Args:
    config: whose data source is read, resized as it says.
    out: an .npz; "{split}" in it stands for train and test.

  Raises:
    ValueError: for another ending, or without {split} where there are two.
  """
  name = str(out)
  for split in ("train", "test"):
    check_out(epath.Path(name.replace(SPLIT, split)))
  run = from_config.build(config)
  facts = describe(run.source, counted=False)
  say(facts.summary(run.devices))
  for line in pack_source(run.source, name, say):
    answer(line)
