"""Reads data sets of images, and makes batches that depend on (seed, step).

A source returns any of its images by index; a `Pipeline` shuffles indices, not
images. A source reads no file, and imports neither scikit-learn nor
tensorflow-datasets, until its data is needed.
"""

from diffdistill.kinds import Kinds

# Maps a source's `kind` in a config to its class. Other keys are its fields.
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
