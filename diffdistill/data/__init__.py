"""Images by number, and batch(step) as a pure function of (seed, step).

A source hands over any of its images by index; a `Pipeline` shuffles indices,
never images. Nothing here reads a file, or imports scikit-learn or
tensorflow-datasets, before a source is asked for its data.
"""

from diffdistill.data.folder import Folder
from diffdistill.data.packed import Npz
from diffdistill.data.pipeline import Pipeline, once
from diffdistill.data.sources import Digits, Idx, Source
from diffdistill.data.tfds import Tfds

# What a config may name; a config's other keys are the fields of the class.
SOURCES = {
  "digits": Digits,
  "idx": Idx,
  "folder": Folder,
  "npz": Npz,
  "tfds": Tfds,
}

__all__ = [
  "SOURCES",
  "Digits",
  "Folder",
  "Idx",
  "Npz",
  "Pipeline",
  "Source",
  "Tfds",
  "once",
]
