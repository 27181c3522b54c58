"""Images by number, and batch(step) as a pure function of (seed, step).

A source returns any of its images by index; a `Pipeline` shuffles indices, not
images. No file is read, and neither scikit-learn nor tensorflow-datasets is
imported, before a source is asked for its data.
"""

from diffdistill.data.folder import Folder
from diffdistill.data.packed import Npz
from diffdistill.data.pipeline import Pipeline, once
from diffdistill.data.sources import Digits, Idx, Source
from diffdistill.data.tfds import Tfds

# A config names one of these as `kind`; its other keys are fields of the class.
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
