"""Package metadata; tool settings are in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

setup(
  name="diffdistill",
  version="0.1.0",
  description="Few-step students of diffusion teachers, in JAX",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # diffdistill/configs is a link to configs/, which becomes files in a wheel.
  packages=find_packages(include=["diffdistill", "diffdistill.*"]),
  package_data={
    "diffdistill": ["py.typed"],
    "diffdistill.objectives": ["papers.bib"],
    "diffdistill.reporting": ["templates/*"],
  },
  install_requires=[
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "flatbuffers>=24.3",
    "flax>=0.12",
    "grain>=0.2.18",
    "jax>=0.10",
    "jaxtyping>=0.3.11",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11",
    "PyYAML>=6",
    "safetensors>=0.5",
    "scikit-learn>=1.5",
    "typing_extensions>=4.12",
  ],
  extras_require={
    "cuda": ["jax[cuda13]>=0.10"],
    "gcs": ["gcsfs>=2024.6"],
    "plan": ["libtpu>=0.0.42"],
    "tensorboard": ["clu>=0.0.12", "tensorflow-cpu", "tensorboard"],
    "tfds": ["tensorflow-datasets", "array-record"],
    "tpu": ["jax[tpu]>=0.10"],
    "wandb": ["wandb>=0.22"],
  },
  entry_points={"console_scripts": ["diffdistill = diffdistill.__main__:main"]},
)
