"""A student that is told its guidance is sampled and exported with it."""

import numpy as np
import pytest
from etils import epath

from diffdistill.diffusion.guidance import Told
from diffdistill.images import to_host
from diffdistill.interop import model_folder, stablehlo
from diffdistill.judging.contestants import contestants
from diffdistill.judging.exported import read_exported
from diffdistill.run import from_config
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.tools import export, train
from diffdistill.tools.drawing import ExportArtist, RunArtist
from diffdistill.tools.drawn import Wish

BATCH, NAME = 8, "halve/001"
# The training of three models and two exports take more than 8 seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(small_config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "run"
  stages, model = small_config["stages"], small_config["model"]
  halve, told = stages["halve"], {"told": (0.0, 4.0)}
  guided = {
    "objective": {"kind": "guidance_distillation", **told},
    "optimizer": {"learning_rate": 0.1},
    "frozen": {"teacher": "teacher"},
    "num_steps": (2,),
    "num_updates": 3,
    "batch_size": BATCH,
  }
  halve = {
    **halve,
    "objective": {"kind": "progressive", **told},
    "frozen": {"teacher": "guided"},
  }
  network = {**model["network"], "told_guidance": True}
  config = {
    **{
      name: small_config[name] for name in small_config if name != "classifier"
    },
    "run": ("teacher", "guided", "halve"),
    "guidance": {"weight": 1.5},
    "model": {**model, "network": network, "label_dropout": 0.2},
    "stages": {"teacher": stages["teacher"], "guided": guided, "halve": halve},
  }
  train.train(config, workdir)
  return workdir


def images_of(run, workdir, weight):
  """The first batch of images of the last student, which is told a weight."""
  sampler = run.rounds[NAME][0].objective.sampler
  generator = run.generator(sampler, BATCH, guidance=Told(weight=weight))
  params = run.product(workdir, NAME)
  return to_host(next(generator.batches(params, 0, BATCH, 1)))


def test_a_told_student_is_judged_and_sampled_with_a_weight(workdir, refuse):
  run, said = from_config.reopen(workdir), []
  judged = {c.name: c.sampled for c in contestants(run, workdir, said.append)}
  assert "Guidance(weight=1.5" in judged["teacher"]
  assert "Told(weight=1.5)" in judged["guided/any"]
  assert "Told(weight=1.5)" in judged[NAME]
  usual, other = (images_of(run, workdir, w) for w in (1.5, 4.0))
  assert np.abs(usual - other).max() > 1e-3
  artist = RunArtist(workdir)
  drawn = {
    weight: artist.draw(NAME, Wish(num_images=BATCH, guidance=weight)).images
    for weight in (None, 1.5)
  }
  np.testing.assert_array_equal(drawn[None], drawn[1.5])
  line = refuse(
    1, "sample", f"--workdir={workdir}", "--guidance=4.5", "--out=sheet.png"
  )
  assert line == (
    f"guidance is 4.5, but {NAME} has learned weights from 0 to 4; pass one of"
    " these"
  )


def test_no_other_run_learns_from_a_student_that_is_told_its_guidance(workdir):
  run = from_config.reopen(workdir)
  stage = run.rounds["guided/any"][0]
  for name in ("guided/any", NAME):
    with pytest.raises(ValueError, match="is of a student that is told a") as e:
      load_outside(run, stage, "teacher", f"path:{workdir / name}")
    assert str(e.value).startswith("stages.guided.frozen.teacher is of")
    assert "\n" not in str(e.value)
  assert load_outside(run, stage, "teacher", f"path:{workdir / 'teacher'}")


def test_an_exported_student_is_told_its_weight(workdir, tmp_path):
  run = from_config.reopen(workdir)
  weights, program = (epath.Path(tmp_path / name) for name in "wp")
  export.export(workdir, NAME, None, "safetensors", weights)
  model = model_folder.load(weights)
  assert (model.told, model.guidance) == ((0.0, 4.0), 1.5)
  card = " ".join((weights / "README.md").read_text().split())
  assert "is told a guidance weight: 1.5, if none is given." in card
  assert "It has learned weights from 0 to 4" in card
  exported = read_exported(weights)
  artist = ExportArtist(weights)
  for weight in (None, 4.0):
    expected = images_of(run, workdir, weight or 1.5)
    generator = exported.guided(weight).generator(run.mesh, BATCH)
    found = to_host(next(generator.batches(model.params, 0, BATCH, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert len(artist.draw(None, Wish(num_images=2, guidance=3.0)).images) == 2
  with pytest.raises(ValueError, match="guidance is 5, but w has learned"):
    artist.draw(None, Wish(num_images=2, guidance=5.0))
  export.export(workdir, NAME, None, "stablehlo", program)
  called, _, _ = stablehlo.read_sampler(program)
  sampler = run.rounds[NAME][0].objective.sampler
  generator = run.generator(sampler, BATCH)
  noise, label = generator.noise(0, 0), generator.labels(0)
  images = called.call(noise, label, np.uint32(0))
  expected = images_of(run, workdir, 1.5)
  np.testing.assert_allclose(images, expected, atol=1e-5)
  with pytest.raises(ValueError, match="that it was exported with; leave it"):
    ExportArtist(program).draw(None, Wish(num_images=2, guidance=1.5))
