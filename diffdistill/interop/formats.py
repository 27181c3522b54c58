"""Chooses the importer for a file or a folder."""

from typing import Any

from etils import epath

from diffdistill.interop import (
  diffusers,
  edm,
  google,
  guided_diffusion,
  model_folder,
)
from diffdistill.interop.foreign_json import read_foreign_json
from diffdistill.interop.model import Model


def read_model(path: epath.Path, settings: epath.Path | None) -> Model:
  """Reads the model in a file or a folder.

  Args:
    path: a folder in our format or in diffusers'; an EDM pickle (.pkl); a file
      of OpenAI's ADM (.pt); or a Flax checkpoint of Salimans & Ho 2022 (any
      other file).
    settings: a JSON file with the settings of an ADM or a Flax checkpoint;
      these files contain only weights.

  Raises:
    ValueError: if the format is none of these, or if settings are missing or
      not needed.
  """
  needs_settings = path.is_file() and path.suffix != ".pkl"
  if not path.exists():
    raise ValueError(f"there is no {path}; pass a file or a folder of weights")
  if needs_settings != (settings is not None):
    raise ValueError(
      f"{path} comes without its settings; pass --settings=FILE.json"
      if needs_settings
      else f"{path} says its settings itself; leave --settings out"
    )
  try:
    return _read(path, settings)
  except ValueError:
    raise
  # A file from elsewhere can have errors that no importer checks, so turn
  # every exception into a refusal.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(
      f"{path} cannot be read ({reason}); one of its settings is damaged, or"
      " of a kind that is not represented here"
    ) from error


def _read(path: epath.Path, settings: epath.Path | None) -> Model:
  if path.is_dir():
    is_ours = (path / model_folder.DESCRIPTION).exists()
    return model_folder.load(path) if is_ours else diffusers.read(path)
  if settings is None:
    return edm.read(path)
  reader = guided_diffusion if path.suffix == ".pt" else google
  return reader.read(path, _read_settings(settings))


def _read_settings(path: epath.Path) -> dict[str, Any]:
  if not path.is_file():
    raise ValueError(f"there is no {path}; pass a JSON file as --settings")
  return read_foreign_json(path, "write {name: value, ...}")
