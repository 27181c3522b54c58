"""An exported model equals the model of its run and needs no run."""

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.images import to_host
from diffdistill.interop import model_folder, stablehlo
from diffdistill.judging.exported import open_exported
from diffdistill.run import from_config
from diffdistill.tools import export

BATCH = 8


@pytest.fixture(scope="module")
def workdir(finished_run):
  return epath.Path(finished_run)


@pytest.fixture(scope="module")
def exports(workdir, tmp_path_factory):
  """Folders with the exported student, one for each format."""
  folder = epath.Path(tmp_path_factory.mktemp("exports"))
  folders = {kind: folder / kind for kind in ("safetensors", "stablehlo")}
  for kind, folder in folders.items():
    export.export(workdir, "halve/001", None, kind, folder)
  return folders


def images_of(contestant, num_steps=1, count=11):
  batches = contestant.generator.batches(contestant.load(), 3, count, num_steps)
  return np.concatenate([to_host(images) for images in batches])


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_an_exported_model_makes_the_images_of_the_run(
  workdir, exports, kind, num_devices
):
  run = from_config.reopen(workdir)
  stage, _ = run.rounds["halve/001"]
  generator = run.generator(stage.objective.sampler, BATCH)
  params = run.product(workdir, "halve/001")
  expected = np.concatenate(
    [to_host(images) for images in generator.batches(params, 3, 11, 1)]
  )
  devices = jax.devices()[:num_devices]
  student = open_exported(exports[kind], BATCH, devices=devices)
  assert (student.name, student.num_steps) == (kind, (1,))
  # Both the run and the folder have the class frequencies of the data.
  ours, theirs = (g.labels_of(0, 60) for g in (generator, student.generator))
  assert np.bincount(ours[:50]).tolist() == [17, 17, 16]
  np.testing.assert_array_equal(theirs, ours)
  np.testing.assert_allclose(images_of(student), expected, atol=1e-5)


def test_an_exported_teacher_is_judged_at_the_given_steps(workdir, tmp_path):
  folder = epath.Path(tmp_path) / "teacher"
  export.export(workdir, "teacher", None, "safetensors", folder)
  with pytest.raises(ValueError, match="is a teacher, which was made for no"):
    open_exported(folder, BATCH)
  teacher = open_exported(folder, BATCH, (1, 2))
  assert teacher.num_steps == (1, 2)
  assert np.abs(images_of(teacher, 1) - images_of(teacher, 2)).max() > 1e-3
  # A StableHLO program keeps the number of steps of its export.
  folder = epath.Path(tmp_path) / "program"
  export.export(workdir, "teacher", 2, "stablehlo", folder)
  program = open_exported(folder, BATCH, (1,))
  assert program.num_steps == (2,)
  np.testing.assert_allclose(
    images_of(program, 2), images_of(teacher, 2), atol=1e-5
  )


def test_a_folder_without_a_model_or_a_damaged_one_is_refused(
  exports, tmp_path
):
  folder = epath.Path(tmp_path)
  with pytest.raises(ValueError, match=f"has no {model_folder.DESCRIPTION}"):
    open_exported(folder, BATCH)
  with pytest.raises(ValueError, match=f"has no {stablehlo.DESCRIPTION}"):
    stablehlo.read_sampler(folder)
  (folder / stablehlo.DESCRIPTION).write_text('{"num_classes": 3}')
  with pytest.raises(ValueError, match=r"is damaged \('num_steps'\); export"):
    open_exported(folder, BATCH)
  whole = exports["stablehlo"]
  said = (whole / stablehlo.DESCRIPTION).read_text()
  (folder / stablehlo.DESCRIPTION).write_text(said)
  data = (whole / stablehlo.PROGRAM).read_bytes()
  for damaged in (b"", data[: len(data) // 2]):
    (folder / stablehlo.PROGRAM).write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
      open_exported(folder, BATCH)
