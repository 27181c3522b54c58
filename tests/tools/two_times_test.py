"""A student of two times is trained once, sampled by name, and exported."""

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.images import to_host
from diffdistill.interop import model_folder, stablehlo
from diffdistill.judging.contestants import contestants
from diffdistill.judging.exported import read_exported
from diffdistill.run import from_config
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.sampling.flow_map import FlowMap
from diffdistill.tools import export, train
from diffdistill.tools.finished import finished_model

BATCH, NAME = 8, "jump/any"
# The training of three models and three exports take more than 8 seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(small_config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "run"
  stages, model = small_config["stages"], small_config["model"]
  jump = {
    "objective": {"kind": "flow_map"},
    "sampler": {"kind": "flow_map"},
    "optimizer": {"learning_rate": 1e-2},
    "frozen": {"teacher": "teacher"},
    "num_steps": (2, 1),
    "num_updates": 2,
    "batch_size": BATCH,
  }
  # This student is drawn at random and has no teacher.
  alone = {
    **{name: jump[name] for name in jump if name != "frozen"},
    "objective": {"kind": "mean_flow", "from_teacher": False},
    "num_steps": (1,),
  }
  network = {**model["network"], "two_times": True}
  config = {
    **{
      name: small_config[name] for name in small_config if name != "classifier"
    },
    "run": ("teacher", "jump", "alone"),
    "model": {**model, "network": network, "output": "v"},
    "stages": {"teacher": stages["teacher"], "jump": jump, "alone": alone},
  }
  train.train(config, workdir)
  return workdir


def images_of(run, workdir, num_steps):
  """The first batch of images of the student, with seed 0."""
  generator = run.generator(run.rounds[NAME][0].objective.sampler, BATCH)
  params = run.product(workdir, NAME)
  return to_host(next(generator.batches(params, 0, BATCH, num_steps)))


def test_one_student_is_judged_and_sampled_at_each_of_its_steps(workdir):
  run, said = from_config.reopen(workdir), []
  judged = contestants(run, workdir, said.append)
  assert [(c.name, c.num_steps) for c in judged] == [
    ("teacher", (1, 2)),
    (NAME, (1, 2)),
    ("alone/any", (1,)),
  ]
  for asked, steps in ((None, 2), (1, 1)):
    assert finished_model(run, workdir, NAME, asked, said.append)[2] == steps
  assert said == []
  assert finished_model(run, workdir, NAME, 4, said.append)[2] == 4
  assert said == [
    "jump/any was made for 2 or 1 steps and is sampled in 4; leave num_steps"
    " out for 2"
  ]


def test_a_student_of_two_times_is_exported_with_its_sampler(workdir, tmp_path):
  run = from_config.reopen(workdir)
  weights, program = (epath.Path(tmp_path / name) for name in "wp")
  export.export(workdir, NAME, 1, "safetensors", weights)
  model = model_folder.load(weights)
  assert (model.num_steps, model.network["two_times"]) == (1, True)
  denoiser = denoiser_of(model)
  sampler = sampler_of(model, denoiser)
  assert denoiser == run.denoiser
  assert isinstance(sampler, FlowMap)
  ours = run.product(workdir, NAME)
  jax.tree.map(np.testing.assert_array_equal, model.params, ours)
  card = (weights / "README.md").read_text()
  assert "# jump/any, 1 steps" in card
  assert "Distillation of a teacher's flow map (Boffi et al. 2024)." in card
  assert "* Unlike the paper, the coordinates are those of the circle" in card
  export.export(workdir, NAME, None, "stablehlo", program)
  called, _, steps = stablehlo.read_sampler(program)
  assert steps == 2
  generator = run.generator(sampler, BATCH)
  noise, label = generator.noise(0, 0), generator.labels(0)
  images = called.call(noise, label, np.uint32(0))
  np.testing.assert_allclose(images, images_of(run, workdir, 2), atol=1e-5)
  assert read_exported(weights).steps(()) == (1,)


def test_the_card_of_a_student_from_data_names_no_teacher(workdir, tmp_path):
  out = epath.Path(tmp_path / "out")
  export.export(workdir, "alone/any", None, "safetensors", out)
  card = (out / "README.md").read_text()
  assert "It has no teacher: it was trained from the data alone." in card
  origin = model_folder.load(out).origin
  assert origin == "alone/any, trained from data alone"
