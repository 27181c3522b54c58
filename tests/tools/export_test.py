"""An exported model makes the same images as the model of the run."""

import json
import platform
import sys

import jax
import numpy as np
import pytest
import yaml
from etils import epath

from diffdistill.images import to_host
from diffdistill.interop import model_folder
from diffdistill.run import from_config
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.system.files import read_json, write_json
from diffdistill.tools import evaluate, export, import_model, train

BATCH = 8


@pytest.fixture(scope="module")
def config(small_config):
  """The small config with labels, and students of two steps and one step."""
  stages = {
    name: dict(fields) for name, fields in small_config["stages"].items()
  }
  stages["halve"]["start_steps"] = 4
  return {**small_config, "stages": stages}


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "run"
  train.train(config, workdir)
  evaluate.evaluate(workdir, None, (1, 2))
  return workdir


@pytest.fixture
def out(tmp_path):
  return epath.Path(tmp_path / "out")


def images_of(run, workdir, name, num_steps):
  """The first batch of images with seed 0."""
  stage, round_ = run.rounds[name]
  generator = run.generator(stage.objective.sampler, BATCH)
  params = run.product(workdir, round_.name)
  return to_host(next(generator.batches(params, 0, BATCH, num_steps)))


def test_safetensors_hold_the_weights_and_the_sampler(workdir, out):
  export.export(workdir, "halve/002", None, "safetensors", out)
  model = model_folder.load(out)
  run = from_config.reopen(workdir)
  params = run.product(workdir, "halve/002")
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert (model.num_steps, model.num_classes) == (2, 3)
  denoiser = denoiser_of(model)
  assert denoiser == run.denoiser
  stage, _ = run.rounds["halve/002"]
  assert sampler_of(model, denoiser) == stage.objective.sampler


def test_an_exported_teacher_can_be_imported_unchanged(
  config, workdir, out, tmp_path
):
  """If a teacher is exported and imported again, no weight changes."""
  export.export(workdir, "teacher", None, "safetensors", out)
  again, imported = epath.Path(tmp_path / "again"), epath.Path(tmp_path / "in")
  import_model.import_model(out, None, imported)
  stages = dict(config["stages"])
  stages["teacher"] = {**stages["teacher"], "source": f"imported:{imported}"}
  train.train({**config, "run": ("teacher",), "stages": stages}, again)
  ours, theirs = (
    from_config.reopen(place).product(place, "teacher")
    for place in (workdir, again)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_exported_program_makes_the_images_of_the_run(
  children, workdir, out
):
  export.export(workdir, "halve/002", None, "stablehlo", out)
  run = from_config.reopen(workdir)
  stage, _ = run.rounds["halve/002"]
  generator = run.generator(stage.objective.sampler, BATCH)
  script = f"""
import numpy as np
from jax import export
with open({str(out / "model.stablehlo")!r}, "rb") as file:
  sampler = export.deserialize(bytearray(file.read()))
folder = {str(out)!r}
noise, label = (np.load(f"{{folder}}/{{n}}.npy") for n in ("noise", "label"))
np.save({str(out / "images.npy")!r}, sampler.call(noise, label, np.uint32(0)))
"""
  np.save(out / "noise.npy", np.asarray(generator.noise(0, 0)))
  np.save(out / "label.npy", np.asarray(generator.labels(0)))
  children.run(sys.executable, "-c", script, check=True)
  np.testing.assert_allclose(
    np.load(out / "images.npy"),
    images_of(run, workdir, "halve/002", 2),
    atol=1e-5,
  )


def settings_of(card):
  """The settings in a model card, read from JSON."""
  return json.loads(card.split("```json\n")[1].split("```")[0])


def test_the_card_states_the_teacher_the_distance_and_the_settings(
  workdir, out
):
  export.export(workdir, "halve/002", None, "safetensors", out)
  card = (out / "README.md").read_text()
  rows = json.loads((workdir / "evaluation.json").read_text())["rows"]
  (row,) = (row for row in rows if row["model"] == "halve/002")
  assert "# halve/002, 2 steps" in card
  stage, _ = from_config.reopen(workdir).rounds["halve/002"]
  assert stage.objective.__doc__.strip().splitlines()[0] in card
  assert "The teacher: a teacher trained in the same run, for " in card
  assert "images of 2x2x1, 3 classes" in card
  assert f"{row['FD-classifier']:.4g}" in card
  assert "are no FID" in card
  assert '"start_steps": 4' in card
  assert '"guidance"' not in card  # the config has no guidance
  header = yaml.safe_load(card.split("---")[1])
  assert header["license"] == "unknown"
  assert header["library_name"] == "diffdistill"
  # The card states the updates of each round, and names no path or machine.
  done = settings_of(card)["stages.halve"]["num_updates"]
  assert done == {"halve/002": 2}
  assert str(workdir.parent) not in card
  assert platform.node() not in card
  assert "The paper's own file states none" in card


def test_a_card_names_an_imported_teacher_and_its_licence(
  config, workdir, out, tmp_path
):
  export.export(workdir, "teacher", None, "safetensors", out)
  description = out / "model.json"
  fields = read_json(description)
  fields |= {"origin": "somebody's network", "license": "mit"}
  write_json(description, fields)
  stages = dict(config["stages"])
  stages["teacher"] = {**stages["teacher"], "source": f"imported:{out}"}
  run = epath.Path(tmp_path / "run")
  train.train({**config, "run": ("teacher", "halve"), "stages": stages}, run)
  folder = epath.Path(tmp_path / "student")
  export.export(run, None, None, "safetensors", folder)
  card = (folder / "README.md").read_text()
  assert "license: mit" in card
  assert (
    "The teacher: somebody's network. It was imported. Its licence: mit."
  ) in card
  assert "It has not been judged" in card
  settings = settings_of(card)
  # The teacher was imported, so the card has no settings of its training.
  assert settings["stages.teacher"] == {"source": "an imported model"}
  assert str(tmp_path.parent) not in card
  export.export(run, "teacher", None, "safetensors", folder / "same")
  card = (folder / "same" / "README.md").read_text()
  assert "Not trained in this run, but taken as it came" in card
  assert "Deviations from the paper" not in card


def test_a_student_s_card_names_its_own_origin(config, workdir, out, tmp_path):
  guided = {**config, "guidance": {"weight": 0.0}}
  run = epath.Path(tmp_path / "run")
  train.train({**guided, "run": ("teacher", "halve")}, run)
  export.export(run, "halve/001", None, "safetensors", out)
  origin = model_folder.describe(out).origin
  assert origin == "halve/001, distilled from a teacher trained in the same run"
  assert '"guidance": {' in (out / "README.md").read_text()


def test_files_in_the_output_folder_are_not_overwritten(
  refuse, workdir, tmp_path
):
  readme = tmp_path / "README.md"
  readme.write_text("mine")
  for command in (("export", f"--workdir={workdir}"), ("import", "--from=x")):
    line = refuse(1, *command, f"--out={tmp_path}")
    assert "where something is already; pass a new or empty folder" in line
  assert readme.read_text() == "mine"


@pytest.mark.parametrize(
  ("flags", "match"),
  [
    ("--round=halve/064", "the model is 'halve/064'"),
    ("--format=diffusers", "the model is a mlp"),
  ],
)
def test_unknown_rounds_and_unfit_formats_are_refused(
  refuse, workdir, out, flags, match
):
  arguments = (f"--workdir={workdir}", flags, f"--out={out}")
  assert match in refuse(1, "export", *arguments)
  assert not out.exists()


def test_a_model_in_place_of_the_current_folder_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for out in (".", tmp_path):
    with pytest.raises(ValueError, match="the current folder, which cannot be"):
      export.check_empty(epath.Path(out))


def test_an_unknown_format_is_refused(workdir, out):
  with pytest.raises(ValueError, match="format is 'onnx'; pass one of diffus"):
    export.export(workdir, None, None, "onnx", out)


@pytest.mark.parametrize(
  ("place", "settings", "match"),
  [
    ("none", None, "there is no"),
    ("weights.pt", None, "comes without its settings; pass --settings="),
    ("weights.pkl", "settings.json", "says its settings itself"),
    ("weights.pt", "missing.json", "there is no"),
    ("weights.pt", "damaged.json", "is no JSON"),
    ("weights.pt", "list.json", "holds no fields"),
    ("folder", None, "has no unet/config.json"),
    ("weights.pkl", None, "damaged"),
    ("weights.pt", "settings.json", "damaged"),
    ("checkpoint_3", "settings.json", ""),
  ],
)
def test_imports_of_unreadable_models_are_refused(
  refuse, tmp_path, out, place, settings, match
):
  for name in ("weights.pt", "weights.pkl", "checkpoint_3"):
    (tmp_path / name).write_bytes(b"\x80no weights")
  (tmp_path / "settings.json").write_text("{}")
  (tmp_path / "damaged.json").write_text("{")
  (tmp_path / "list.json").write_text("[]")
  (tmp_path / "folder").mkdir()
  flags = [f"--from={tmp_path / place}", f"--out={out}"]
  if settings:
    flags.append(f"--settings={tmp_path / settings}")
  assert match in refuse(1, "import", *flags)
  assert not out.exists()


@pytest.mark.slow
def test_a_network_that_diffusers_lacks_is_refused_with_other_formats(
  config, tmp_path, refuse
):
  run, out = epath.Path(tmp_path / "run"), tmp_path / "out"
  network = {
    "kind": "unet",
    "channels": 4,
    "multipliers": (1,),
    "num_blocks": 1,
    "patch": 2,
  }
  model = {"network": network, "schedule": {"kind": "cosine"}}
  train.train({**config, "run": ("teacher", "halve"), "model": model}, run)
  flags = (f"--workdir={run}", "--format=diffusers", f"--out={out}")
  line = refuse(1, "export", *flags)
  assert line.startswith("patch is 2, which UNet2DModel does not have")
  assert line.endswith("or pass --format=safetensors or stablehlo")
  assert not out.exists()


def test_a_damaged_evaluation_is_refused_before_anything_is_exported(
  workdir, out
):
  path = workdir / "evaluation.json"
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b"teacher", b"Teacher"))
  with pytest.raises(ValueError, match="its digest does not match; run diffd"):
    export.export(workdir, "halve/002", None, "safetensors", out)
  path.write_bytes(whole)
  assert not out.exists() or not list(out.iterdir())
