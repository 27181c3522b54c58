"""Tests that diffusers folders are written and read, without diffusers.

live_test.py checks that diffusers itself reads these folders.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.diffusion.prediction import from_x0
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine, CosineBeta, LinearBeta
from diffdistill.interop import diffusers
from diffdistill.interop.model import Model, network_of
from diffdistill.sampling.ddim import DDIM

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def teacher(with_weights):
  """Returns a model that reads DDPM's time index, as diffusers' models do."""
  bare = Model(
    network={
      "kind": "unet",
      "style": "ddpm",
      "channels": 8,
      "multipliers": (1, 2),
      "num_blocks": 1,
      "attention": (4,),
      "groups": 4,
    },
    schedule={
      "kind": "linear_beta",
      "num_steps": 1000,
      "beta_min": 1e-4,
      "beta_max": 0.02,
      "power": 1.0,
    },
    output="eps",
    precondition={"kind": "identity", "noise": "index", "num_steps": 1000},
    image_shape=(8, 8, 3),
    params={},
  )
  return with_weights(bare)


@pytest.fixture(scope="module")
def written(teacher, tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("written") / "teacher")
  diffusers.write(teacher, folder, None)
  return folder


@pytest.fixture
def folder(written, tmp_path):
  """Copies the written folder, for a test that changes it."""
  return epath.Path(shutil.copytree(written, tmp_path / "teacher"))


def fields_of(folder, path=SCHEDULER):
  return json.loads((folder / path).read_text())


def grid(count, schedule=None, times=None):
  times = np.arange(1, count + 1) / count if times is None else times
  schedule = schedule or LinearBeta()
  return diffusers.Grid(
    times=times,
    alphas=np.asarray(schedule.alpha(jax.numpy.asarray(times))),
    noise=times / 2,
  )


@pytest.mark.parametrize(
  ("schedule", "output"),
  [
    ({}, "eps"),
    ({"beta_min": 0.00085, "beta_max": 0.012, "power": 2.0}, "v"),
    ({"kind": "cosine_beta", "num_steps": 1000}, "x0"),
  ],
)
def test_a_written_folder_is_read_as_the_same_model(
  teacher, schedule, output, tmp_path
):
  if "kind" not in schedule:
    schedule = {**teacher.schedule, **schedule}
  model = dataclasses.replace(teacher, schedule=schedule, output=output)
  folder = epath.Path(tmp_path / "out")
  diffusers.write(model, folder, None)
  again = diffusers.read(folder)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  for field in ("schedule", "output", "precondition", "image_shape"):
    assert getattr(again, field) == getattr(model, field)
  assert network_of(again).module == network_of(model).module
  assert again.origin == "diffusers UNet2DModel of out"


def test_a_student_that_reads_the_index_is_written_with_its_schedule(
  teacher, tmp_path
):
  folder = epath.Path(tmp_path / "out")
  student = dataclasses.replace(
    teacher, sampler={"kind": "ddim", "clip": False}
  )
  diffusers.write(student, folder, grid(4))
  fields = fields_of(folder)
  assert fields["_class_name"] == "DDIMScheduler"
  assert fields["num_train_timesteps"] == 1000
  # Trailing spacing visits the indices 999, 749, 499 and 249, which are t = 1,
  # 3/4, 1/2 and 1/4.
  assert fields["timestep_spacing"] == "trailing"
  assert fields["clip_sample"] is False
  assert fields_of(folder, "model_index.json")["_class_name"] == "DDIMPipeline"
  assert diffusers.read(folder).schedule == teacher.schedule


@pytest.mark.parametrize(
  ("steps", "noise", "kind", "variance"),
  [
    # 3 steps do not divide 1000, so DDPM's indices cannot be kept.
    ((3, None), None, "DPMSolverMultistepScheduler", None),
    ((4, "quadratic"), 0.0, "DDPMScheduler", "fixed_small"),
  ],
)
def test_another_student_is_written_with_a_table_of_its_steps(
  teacher, steps, noise, kind, variance, tmp_path
):
  count, shape = steps
  times = (np.arange(1, count + 1) / count) ** (2 if shape else 1)
  sampler = {"kind": "ddim"}
  if noise is not None:
    sampler = {"kind": "ancestral", "noise": noise}
  student = dataclasses.replace(teacher, sampler=sampler)
  folder, steps = epath.Path(tmp_path / "out"), grid(count, CosineBeta(), times)
  diffusers.write(student, folder, steps)
  fields = fields_of(folder)
  assert fields["_class_name"] == kind
  assert fields.get("variance_type") == variance
  assert fields["num_train_timesteps"] == count
  squares = np.cumprod(1 - np.asarray(fields["trained_betas"]))
  # The tolerance is for the last beta, which may be at most 1 - 2**-24.
  np.testing.assert_allclose(squares, steps.alphas**2, rtol=1e-6, atol=2**-24)
  unet = fields_of(folder, "unet/config.json")
  assert unet["time_embedding_type"] == "learned"
  assert unet["num_train_timesteps"] == count


def test_a_clipped_student_is_written_with_a_scheduler_that_clips(
  teacher, tmp_path
):
  """Compares our steps with the formula of DPMSolverMultistepScheduler.step.

  A "dpmsolver++" step of first order is
  x = sigma_s / sigma_t x - alpha_s (exp(-h) - 1) x0,
  where h is the difference of log(alpha / sigma).
  """
  process = GaussianProcess(schedule=Cosine(logsnr_min=-12.0))
  sampler = DDIM(process=process)
  student = dataclasses.replace(
    teacher,
    sampler={"kind": "ddim", "clip": True},
    output="x0",
    precondition={"kind": "identity", "noise": "angle"},
  )
  folder = epath.Path(tmp_path / "out")
  diffusers.write(student, folder, grid(4, process.schedule))
  fields = fields_of(folder)
  assert fields["_class_name"] == "DPMSolverMultistepScheduler"
  wanted = ("dpmsolver++", 1, True, 1.0, "zero", "sample")
  names = ("algorithm_type", "solver_order", "thresholding")
  names += ("sample_max_value", "final_sigmas_type", "prediction_type")
  assert tuple(fields[name] for name in names) == wanted
  assert fields_of(folder, "model_index.json")["_class_name"] == "DDPMPipeline"
  squares = np.cumprod(1 - np.asarray(fields["trained_betas"]))
  alphas = np.concatenate([[1.0], np.sqrt(squares)])
  sigmas = np.concatenate([[0.0], np.sqrt(1 - squares)])
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
  x0 = 3 * jnp.tanh(x[::-1])  # The values outside [-1, 1] must be clipped.
  for i in (4, 3, 2, 1):
    t, s = (jnp.full(2, sampler.time(j, 4)) for j in (i, i - 1))
    with np.errstate(divide="ignore"):
      h = np.log(alphas[i - 1] / sigmas[i - 1]) - np.log(alphas[i] / sigmas[i])
    decay = (np.exp(-h) - 1) * np.clip(x0, -1, 1)
    expected = sigmas[i - 1] / sigmas[i] * x - alphas[i - 1] * decay

    def denoise(x_t, t, s=None, x0=x0):
      return from_x0(x0, x_t, *process.coefficients(t, x_t))

    key = jax.random.key(0)
    stepped, _ = sampler.step(denoise, x, (), t, s, key, jnp.int32(4))
    np.testing.assert_allclose(stepped, expected, atol=2e-5)


def test_written_betas_are_below_one_in_float32(teacher, tmp_path):
  """Schedulers of diffusers divide by zero if a beta rounds to 1."""
  student = dataclasses.replace(
    teacher,
    sampler={"kind": "ddim"},
    precondition={"kind": "identity", "noise": "angle"},
  )
  folder = epath.Path(tmp_path / "out")
  diffusers.write(student, folder, grid(1, Cosine(logsnr_min=-40.0)))
  betas = np.asarray(fields_of(folder)["trained_betas"], np.float32)
  assert betas.max() < 1


def test_a_shifted_schedule_is_written_as_a_table(teacher, tmp_path):
  """Tests betas that beta_min and beta_max alone do not describe."""
  schedule = {**teacher.schedule, "shift_from": 32}
  student = dataclasses.replace(
    teacher, schedule=schedule, sampler={"kind": "ddim"}
  )
  folder = epath.Path(tmp_path / "out")
  diffusers.write(student, folder, grid(4))
  assert fields_of(folder)["num_train_timesteps"] == 4
  with pytest.raises(ValueError, match="the model is no student"):
    diffusers.write(student, epath.Path(tmp_path / "other"), None)


@pytest.mark.parametrize(
  ("header", "license_"),
  [
    ("---\nlicense: mit\n---\n", "mit"),
    ("---\nlicense:\n- mit\n---\n", ""),
    ("# A model\n\nlicense: none of ours\n", ""),
    ("\xff", ""),
  ],
)
def test_the_licence_is_read_from_the_header_of_the_card(
  folder, header, license_
):
  (folder / "README.md").write_bytes(header.encode("latin-1"))
  assert diffusers.read(folder).license == license_


def test_a_network_with_classes_is_written_without_a_pipeline(
  teacher, with_weights, tmp_path
):
  model = with_weights(dataclasses.replace(teacher, num_classes=3))
  # The class table of diffusers has no bias, so the model's bias must be 0.
  model.params["embed"]["label"]["bias"][:] = 0
  folder = epath.Path(tmp_path / "out")
  diffusers.write(model, folder, None)
  assert not (folder / "model_index.json").exists()
  assert diffusers.read(folder).num_classes == 3


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"output": "both"}, "the model predicts both"),
    ({"schedule": {"kind": "cosine"}}, "the model is no student"),
    ({"precondition": {"kind": "edm"}}, "precondition is edm"),
    ({"sampler": {"kind": "heun"}}, "sampler is {'kind': 'heun'}"),
    ({"sampler": {"kind": "ancestral", "noise": 0.5}}, "has no scheduler"),
    (
      {"sampler": {"kind": "one_step", "form": "difference"}},
      "has no scheduler",
    ),
    ({"network": {"kind": "mlp"}}, "the model is a mlp"),
    ({"network": {"kind": "unet", "two_times": True}}, "told a second time"),
    ({"network": {"kind": "unet", "told_guidance": True}}, "told a guidance"),
  ],
)
def test_models_that_diffusers_cannot_represent_are_refused(
  teacher, change, match, tmp_path
):
  model = dataclasses.replace(teacher, **change)
  with pytest.raises(ValueError, match=match) as refusal:
    diffusers.write(model, epath.Path(tmp_path / "out"), None)
  assert "--format=" in str(refusal.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("path", "change", "match"),
  [
    ("unet/config.json", {"_class_name": "AutoencoderKL"}, "a AutoencoderKL"),
    (SCHEDULER, {"trained_betas": [0.1]}, "trained_betas is"),
    (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "_class_name is 'EDME"),
    (SCHEDULER, {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
    (SCHEDULER, {"prediction_type": "flow"}, "prediction_type is 'flow'"),
    (SCHEDULER, {"num_train_timesteps": 4000}, "num_train_timesteps is 4000"),
    (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is"),
  ],
)
def test_unsupported_folders_are_refused_in_one_line(
  folder, path, change, match
):
  file = folder / path
  file.write_text(json.dumps(fields_of(folder, path) | change))
  with pytest.raises(ValueError, match=match) as refusal:
    diffusers.read(folder)
  assert "\n" not in str(refusal.value)


def test_incomplete_and_damaged_folders_are_refused(folder, tmp_path):
  with pytest.raises(ValueError, match=r"has no unet/config\.json"):
    diffusers.read(epath.Path(tmp_path))
  weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="damaged"):
    diffusers.read(folder)
  weights.unlink()
  with pytest.raises(ValueError, match="has no diffusion_pytorch_model"):
    diffusers.read(folder)
  weights.write_bytes(whole)
  (folder / SCHEDULER).write_text("{")
  with pytest.raises(ValueError, match="is no JSON"):
    diffusers.read(folder)
  (folder / SCHEDULER).unlink()
  with pytest.raises(ValueError, match="has no scheduler"):
    diffusers.read(folder)
