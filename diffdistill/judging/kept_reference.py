"""Keeps the statistics of a run's own data for later evaluations.

The statistics are in an .npz (references.py). A JSON file beside the .npz names
the network and the data of the statistics, and holds a hash of the .npz.
Statistics are made again if they are of other data or another network, or if
the file is damaged.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from etils import epath

from diffdistill.evaluation.features import FeatureFn, Reference
from diffdistill.judging.references import load_reference, save_reference
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json


def kept_reference(
  path: epath.Path,
  made_of: str,
  make: Callable[[], Reference],
  *,
  detector: str,
  image_shape: tuple[int, int, int],
  features: FeatureFn,
  say: Callable[[str], None] = lambda line: None,
) -> Reference:
  """The reference in a file if it is of this network and data, else a new one.

  Args:
    path: the path of the .npz; the JSON file has the same name but for its
      ending.
    made_of: text that names the network, its weights and the data.
    make: makes the reference; either every process calls it, or none.
    detector, image_shape, features: the feature network and the shape of
      images; see `load_reference`.
    say: receives one line for each damaged file.
  """

  says = path.with_suffix(".json")

  def same() -> bool:
    if not (says.exists() and path.exists()):
      return False
    try:
      words = read_json(says)
    except ValueError as error:
      say(f"warning: {error}; {path} is made again")
      return False
    if words.get("made_of") != made_of:
      return False
    whole = words == _words(path, made_of)
    if not whole:
      say(
        f"warning: {path} is damaged: its hash is not the one in {says}; it is"
        " made again"
      )
    return whole

  if hosts.on_first(same):
    one = np.zeros((1, *image_shape), np.float32)
    return load_reference(
      path,
      detector=detector,
      dim=features(one).pooled.shape[1],
      image_shape=image_shape,
      features=features,
    )
  reference = make()

  def keep() -> None:
    save_reference(path, reference, detector=detector, image_shape=image_shape)
    write_json(says, _words(path, made_of))

  hosts.on_first(keep)
  return reference


def _words(path: epath.Path, made_of: str) -> dict[str, str]:
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {"made_of": made_of, "sha256": digest}
