"""Tests that diffusers samples our exports, and that we import its models.

These tests need diffusers; `make check-diffusers` installs it and runs them.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.images import to_host
from diffdistill.interop import diffusers
from diffdistill.run import from_config
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.tools import export, import_model, train

pytestmark = [
  pytest.mark.slow,
  pytest.mark.torch,
  # Ignore warnings of torch and the Hugging Face hub, because we cannot fix
  # them.
  pytest.mark.filterwarnings("ignore"),
]
SIZE, IMAGES = 8, 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """Returns the config of a U-Net teacher and a student of 4 steps."""
  random = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("data") / "images.npz"
  images = random.integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)
  np.savez(path, image=images, label=np.zeros(64, np.int64))
  stage = {
    "num_updates": 3,
    "batch_size": IMAGES,
    "optimizer": {"learning_rate": 1e-2},
  }
  return {
    "seed": 0,
    "run": ("teacher", "halve"),
    "data": {"source": {"kind": "npz", "path": str(path), "split": "train"}},
    "model": {
      "network": {
        "kind": "unet",
        "channels": 8,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention": (4,),
        "groups": 4,
      },
      "schedule": {"kind": "cosine"},
      "output": "v",
    },
    "sampler": {"kind": "ddim"},
    "stages": {
      "teacher": {**stage, "objective": {"kind": "denoising"}},
      "halve": {
        **stage,
        "objective": {"kind": "progressive"},
        "frozen": {"teacher": "teacher"},
        "start_steps": 8,
        "end_steps": 4,
        "long_rounds": 0,
      },
    },
    "evaluation": {"num_images": 20, "batch_size": IMAGES, "num_steps": (1, 4)},
  }


def ours(workdir, name, noise, num_steps):
  """Returns images that our sampler makes from `noise`, scaled to [0, 1]."""
  run = from_config.reopen(workdir)
  stage, round_ = run.rounds[name]
  generator = run.generator(stage.objective.sampler, IMAGES)
  images = generator.images_of(
    run.product(workdir, round_.name), jnp.asarray(noise), None, num_steps
  )
  return np.clip(np.asarray(to_host(images)) / 2 + 0.5, 0, 1)


def theirs(folder, num_steps, ask_to_clip=False):
  """Returns noise, and the images that a folder's diffusers pipeline makes.

  DDIMScheduler clips as we do only with use_clipped_model_output=True.
  """
  import torch
  from diffusers import DiffusionPipeline

  pipeline = DiffusionPipeline.from_pretrained(str(folder))
  pipeline.set_progress_bar_config(disable=True)
  images = pipeline(
    batch_size=IMAGES,
    generator=torch.Generator().manual_seed(0),
    num_inference_steps=num_steps,
    **({"use_clipped_model_output": True} if ask_to_clip else {}),
    output_type="np",
  ).images
  noise = torch.randn(
    (IMAGES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)
  )
  return np.moveaxis(noise.numpy(), 1, -1), images


@pytest.mark.parametrize("output", ["v", "x0"])
def test_an_exported_student_samples_the_same_images_in_diffusers(
  config, output, tmp_path
):
  workdir, folder = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "out")
  config = {**config, "model": {**config["model"], "output": output}}
  train.train(config, workdir)
  export.export(workdir, "halve/004", None, "diffusers", folder)
  noise, images = theirs(folder, 4)
  expected = ours(workdir, "halve/004", noise, 4)
  assert expected.std() > 0.05
  np.testing.assert_allclose(images, expected, atol=1e-3)
  # The code in the model card must give the same images.
  card = (folder / "README.md").read_text()
  snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
  names = {}
  exec(snippet.replace("FOLDER", str(folder)), names)
  again = np.stack([np.asarray(image) for image in names["images"][:IMAGES]])
  np.testing.assert_allclose(again / 255, images, atol=0.5 / 255 + 1e-3)


def test_an_ancestral_student_takes_the_same_steps_in_diffusers(
  config, tmp_path
):
  """Compares the mean and the standard deviation of every step."""
  import torch
  from diffusers import DDPMPipeline

  workdir, folder = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "out")
  halve = config["stages"]["halve"]
  moments = {
    **{f: halve[f] for f in ("num_updates", "batch_size", "optimizer")},
    "objective": {"kind": "moment_matching"},
    "frozen": {"teacher": "teacher"},
    "sampler": {"kind": "ancestral"},
    "num_steps": (4,),
  }
  stages = {**config["stages"], "moments": moments}
  run = {**config, "stages": stages, "run": ("teacher", "moments")}
  train.train(run, workdir)
  export.export(workdir, None, None, "diffusers", folder)
  pipeline = DDPMPipeline.from_pretrained(str(folder))
  scheduler = pipeline.scheduler
  scheduler.set_timesteps(4)
  run = from_config.reopen(workdir)
  sampler = run.rounds["moments/004"][0].objective.sampler
  params = run.product(workdir, "moments/004")

  @jax.jit
  def posterior(x, t, s):
    x0 = sampler.predict(run.denoiser.bind(params), x, t).x0
    return sampler.process.posterior(x, x0, t, s, sampler.noise)

  shape = (2, 3, SIZE, SIZE)
  x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
  for left, index in zip(range(4, 0, -1), scheduler.timesteps, strict=True):
    with torch.no_grad():
      out = pipeline.unet(x, index).sample
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    after = scheduler.step(
      out, index, x, generator=torch.Generator().manual_seed(1)
    ).prev_sample
    t, s = (jnp.full(2, i / 4) for i in (left, left - 1))
    mean, std = posterior(jnp.moveaxis(jnp.asarray(x.numpy()), 1, -1), t, s)
    expected = mean + std * np.moveaxis(drawn.numpy(), 1, -1)
    got = np.moveaxis(after.numpy(), 1, -1)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    x = after
  snippet = (folder / "README.md").read_text().split("```")[1]
  names = {}
  snippet = snippet.removeprefix("python\n").replace("FOLDER", str(folder))
  exec(snippet, names)
  assert len(names["images"]) == 16


def network():
  """Returns a UNet2DModel of diffusers with random weights."""
  import torch
  from diffusers import UNet2DModel

  torch.manual_seed(0)
  return UNet2DModel(
    sample_size=SIZE,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
  )


@pytest.mark.parametrize(
  ("beta_schedule", "prediction_type"),
  [("linear", "v_prediction"), ("squaredcos_cap_v2", "sample")],
)
def test_a_teacher_of_diffusers_is_imported_distilled_and_exported(
  config, beta_schedule, prediction_type, tmp_path
):
  """Tests the way from a teacher of diffusers to a student in diffusers."""
  from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

  scheduler = DDIMScheduler(
    beta_schedule=beta_schedule,
    prediction_type=prediction_type,
    timestep_spacing="trailing",
  )
  made = network()
  DDIMPipeline(made, scheduler).save_pretrained(str(tmp_path / "teacher"))
  imported = epath.Path(tmp_path / "imported")
  import_model.import_model(epath.Path(tmp_path / "teacher"), None, imported)
  workdir = epath.Path(tmp_path / "run")
  stages = dict(config["stages"])
  stages["teacher"] = {**stages["teacher"], "source": f"imported:{imported}"}
  train.train({**config, "stages": stages}, workdir)

  # The imported teacher must make the images that diffusers makes.
  noise, images = theirs(tmp_path / "teacher", 8, ask_to_clip=True)
  expected = ours(workdir, "teacher", noise, 8)
  np.testing.assert_allclose(images, expected, atol=1e-3)
  # The student must make the same images here and in diffusers.
  student = epath.Path(tmp_path / "student")
  export.export(workdir, "halve/004", None, "diffusers", student)
  noise, images = theirs(student, 4)
  expected = ours(workdir, "halve/004", noise, 4)
  np.testing.assert_allclose(images, expected, atol=1e-3)
  # The exported teacher must have exactly the weights that were imported.
  back = epath.Path(tmp_path / "back")
  export.export(workdir, "teacher", 8, "diffusers", back)
  again = UNet2DModel.from_pretrained(str(back / "unet")).state_dict()
  for name, tensor in made.state_dict().items():
    np.testing.assert_array_equal(tensor.numpy(), again[name].numpy())


def test_every_step_of_an_eps_teacher_equals_the_step_of_diffusers(tmp_path):
  """Compares single steps that start from the same x_t.

  Over a whole chain, each step would enlarge rounding errors by 1 / alpha,
  because x0 = (x_t - sigma eps) / alpha.
  """
  import torch
  from diffusers import DDIMPipeline, DDIMScheduler

  made, scheduler = network(), DDIMScheduler(timestep_spacing="trailing")
  DDIMPipeline(made, scheduler).save_pretrained(str(tmp_path))
  model = diffusers.read(epath.Path(tmp_path))
  assert model.output == "eps"
  denoiser = denoiser_of(model)
  sampler = sampler_of(model, denoiser)

  @jax.jit
  def step(x, t, s):
    key, denoise = jax.random.key(0), denoiser.bind(model.params)
    return sampler.step(denoise, x, (), t, s, key, jnp.int32(8))[0]

  scheduler.set_timesteps(8)
  x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
  for left, index in zip(range(8, 0, -1), scheduler.timesteps, strict=True):
    with torch.no_grad():
      eps = made(x, index).sample
    after = scheduler.step(eps, index, x, use_clipped_model_output=True)
    t, s = (jnp.full(2, i / 8) for i in (left, left - 1))
    stepped = step(jnp.moveaxis(jnp.asarray(x.numpy()), 1, -1), t, s)
    x = after.prev_sample
    expected = np.moveaxis(x.numpy(), 1, -1)
    np.testing.assert_allclose(stepped, expected, atol=1e-5)
