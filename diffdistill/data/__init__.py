"""Data: images by number, and batch(step) as a pure function of (seed, step).

A source returns any of its images by index; a `Pipeline` shuffles indices, not
images. A source reads no file, and imports neither scikit-learn nor
tensorflow-datasets, until its data is needed.
"""

from diffdistill.kinds import Kinds

# A config names one of these as `kind`; its other keys are fields of the class.
SOURCES = Kinds(
  __name__,
  {
    "digits": "sources:Digits",
    "idx": "sources:Idx",
    "folder": "folder:Folder",
    "npz": "packed:Npz",
    "tfds": "tfds:Tfds",
  },
)
