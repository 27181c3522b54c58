"""The config of a workdir, and which fields of it may change later."""

from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from diffdistill.fields import Fields
from diffdistill.system import hosts
from diffdistill.system.files import read_json, whole, write_json

# These sections do not change what is trained. The total `minutes` may change
# because each stage keeps its own share of it in minutes.
FREE_SECTIONS = ("cadence", "evaluation", "mesh", "minutes", "writer")
FREE_FIELDS = ("path", "data_dir", "num_threads")
# The sections of a stored config that are read before it is built.
REQUIRED = {"run": list, "stages": dict, "data": dict, "model": dict}


def claim(
  workdir: epath.Path, config: Fields, redone: Collection[str] = ()
) -> None:
  """Writes the config of a new workdir, or checks that an old one continues it.

  Stages that have not begun may be changed, added or left out.

  Args:
    workdir: the workdir of the run.
    config: the config of an Experiment; it is written to config.json.
    redone: the stages of which a round is trained again; their fields may
      change.

  Raises:
    ValueError: if the workdir was made with another config (the message names
      one field), or if this host sees another disk than the first.
  """
  hosts.on_first(lambda: _claim(workdir, config, redone))
  if not hosts.everywhere((workdir / "config.json").exists()):
    raise ValueError(
      f"{workdir} is not the same folder on every host; pass a bucket, or a"
      " folder of a disk that all of them share"
    )


def _claim(
  workdir: epath.Path, config: Fields, redone: Collection[str]
) -> None:
  path = workdir / "config.json"
  if path.exists():
    check_continues(workdir, config, redone)
  write_json(path, config)


def check_continues(
  workdir: epath.Path, config: Fields, redone: Collection[str] = ()
) -> None:
  """Checks that a config continues the run of a workdir; writes nothing.

  Args:
    workdir: the workdir of the run.
    config: the config of an Experiment.
    redone: the stages whose fields may change, although they have begun.

  Raises:
    ValueError: if the workdir was made with another config; the message names
      one field.
  """
  stored = stored_config(workdir)
  begun = [name for name in stored["run"] if (workdir / name).exists()]
  theirs, ours = (dict(binding(c, begun, redone)) for c in (stored, config))
  for key in sorted(theirs.keys() | ours.keys()):
    if theirs.get(key) != ours.get(key):
      raise ValueError(
        f"{workdir} was made with another config: {key} is"
        f" {theirs.get(key)!r} there and {ours.get(key)!r} here; pass a new"
        " --workdir, or the config it was made with"
      )


def stored_config(workdir: epath.Path) -> Fields:
  """The config that a workdir was made with.

  Raises:
    ValueError: if no run has begun there, or its config is damaged.
  """
  path = workdir / "config.json"
  if not path.exists():
    # The whole path shows a command that runs in another folder than meant.
    raise ValueError(
      f"{whole(workdir)} holds no run (it has no config.json); pass the"
      " --workdir of a training"
    )
  try:
    config = read_json(path)
  except ValueError as error:
    raise ValueError(
      f"{error}; restore it (no one but `train` may change it), or pass a new"
      " --workdir"
    ) from error
  for name, kind in REQUIRED.items():
    if not isinstance(config.get(name), kind):
      raise ValueError(
        f"{path} is no config of a run: its {name!r} is"
        f" {config.get(name)!r:.50}; restore it, or pass a new --workdir"
      )
  return config


def binding(
  config: Fields, begun: Collection[str], redone: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
  """The config fields that must not change once a workdir has contents.

  Args:
    config: the config.
    begun: the stages that have begun.
    redone: the stages of which a round is trained again.
  """
  yield "run", config["run"][: len(begun)]
  for path, value in _flat(config):
    section, *rest = path.split(".")
    if section in ("run", *FREE_SECTIONS):
      continue
    if section == "stages" and (rest[0] not in begun or rest[0] in redone):
      continue
    if section == "data" and rest[-1] in FREE_FIELDS:
      continue
    yield path, value


def _flat(fields: Fields, path: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", value
