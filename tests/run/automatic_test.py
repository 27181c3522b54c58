"""Fields that say "auto" get values, which a workdir keeps."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffdistill.configs import cifar10, folder
from diffdistill.fields import plain
from diffdistill.run import from_config, speed
from diffdistill.run.at_path import put
from diffdistill.run.automatic import resolved_automatic
from diffdistill.run.choosing import choose
from diffdistill.run.chosen import UPDATES, Device, Found
from diffdistill.run.workdir import claim

CPU = Device(kind="cpu", speed=5e10)
FLOWERS = Found(sides=(128,) * 8, grey=False, counts=(120,) * 5)
ONE_CLASS = Found(sides=(20,), grey=True, counts=(600,))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Two classes of 20 pictures."""
  place = tmp_path_factory.mktemp("photos")
  random = np.random.default_rng(0)
  for name in ("a", "b"):
    (place / name).mkdir()
    for i in range(20):
      pixels = random.integers(0, 256, (18, 17, 3), np.uint8)
      Image.fromarray(pixels).save(place / name / f"{i}.png")
  return place


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path)


@pytest.fixture
def fast(monkeypatch):
  """Sets the speed of the device, which is otherwise measured."""

  def say(operations):
    monkeypatch.setattr(speed, "measured_speed", lambda: operations)

  say(1e10)
  return say


@pytest.mark.parametrize(
  "recipe", ["progressive", "classifier_features", "denoising_student"]
)
def test_an_automatic_dtype_needs_no_image(monkeypatch, recipe):
  config = plain(cifar10.get_config(recipe))
  for kind, dtype in (("cpu", "float32"), ("accelerator", "bfloat16")):
    monkeypatch.setattr(speed, "kind_of", lambda device, kind=kind: kind)
    found = resolved_automatic(config)
    assert found.fields["model"]["network"]["dtype"] == dtype
    assert len(found.said) == (kind != "cpu")
  config["model"]["network"]["dtype"] = "float32"
  assert resolved_automatic(config).fields == config


def own(path, recipe="progressive", **fields):
  config = folder.get_config(recipe)
  config.data.source.path = str(path)
  config.model.network.num_blocks = 1  # a small network is traced quickly
  config.update_from_flattened_dict(fields)
  return plain(config)


def settled(fields, workdir=None):
  """The fields as a workdir records them."""
  return json.loads(
    json.dumps(resolved_automatic(fields, workdir=workdir).fields)
  )


def chosen_for(found, recipe="progressive", device=CPU, **fields):
  values, _ = choose(own("there", recipe, **fields), found, device)
  return {".".join(path): value for path, value in values.items()}


def test_classes_are_told_and_judge():
  values = chosen_for(FLOWERS)
  assert values["data.source.image_size"] == 16
  assert values["data.source.channels"] == 3
  assert values["data.conditional"] is True
  assert values["model.label_dropout"] == 0.1
  assert values["classifier.kind"] == "resnet"
  assert values["minutes"] == 60
  minutes = [values[f"stages.{n}.minutes"] for n in ("teacher", "halve")]
  assert minutes == [35, 20]
  assert values["stages.teacher.enough_updates"] == UPDATES["cpu"]


def test_one_class_is_neither_told_nor_judges():
  values = chosen_for(ONE_CLASS)
  assert values["data.source.image_size"] == 16
  assert values["data.source.channels"] == 1
  assert values["data.conditional"] is False
  assert values["model.label_dropout"] == 0
  assert values["classifier.kind"] is None
  # The minutes of the stages that are left out go to the others.
  assert values["stages.teacher.minutes"] == pytest.approx(60 * 7 / 11)


def test_what_is_given_is_kept_and_the_rest_suits_it():
  given = {"minutes": 600.0, "stages.teacher.batch_size": 24}
  values = chosen_for(FLOWERS, **given, **{"data.conditional": False})
  assert values["stages.teacher.batch_size"] == 24
  assert values["stages.halve.batch_size"] == 24
  assert values["stages.teacher.minutes"] == 350
  assert values["model.label_dropout"] == 0
  usual = chosen_for(FLOWERS)
  # More minutes allow larger images.
  assert values["data.source.image_size"] > usual["data.source.image_size"]


def test_students_are_selected_where_the_judge_has_many_images():
  many = Found(sides=(32,), grey=False, counts=(5000, 5000))
  every = "stages.moments.select.every"
  assert chosen_for(FLOWERS, "all")[every] == 0
  assert chosen_for(many, "all")[every] > 0


@pytest.mark.parametrize("recipe", folder.RECIPES)
def test_stages_that_need_a_classifier_are_left_out_without_one(
  photos, fast, recipe
):
  # The photos leave 4 held-out images, too few for a classifier that judges.
  fields = settled(own(photos, recipe))
  gone = {"classifier", "expert", "features"}
  run = [n for n in own("", recipe)["run"] if n not in gone]
  assert fields["run"] == run
  assert "auto" not in json.dumps(fields)
  minutes = [fields["stages"][name]["minutes"] for name in run]
  assert sum(minutes) == pytest.approx(fields["minutes"])


def test_pictures_without_class_folders_are_one_class(photos, fast):
  fields = settled(own(photos / "a"))
  assert fields["data"]["conditional"] is False
  assert "classifier" not in fields


def test_a_run_goes_on_with_what_its_workdir_records(photos, fast, workdir):
  begun = settled(own(photos), workdir)
  claim(workdir, begun)
  (workdir / "teacher").mkdir()
  fast(1e14)
  again = resolved_automatic(own(photos), workdir=workdir)
  assert json.loads(json.dumps(again.fields)) == begun
  assert "config.json" in again.said[0]
  elsewhere = settled(own(photos))
  assert elsewhere["model"] != begun["model"]
  # If the user gives the minutes that were chosen before, nothing changes.
  minutes = {"minutes": begun["minutes"]}
  assert settled(own(photos, **minutes), workdir) == begun


def test_what_is_not_automatic_must_agree_with_the_workdir(
  photos, fast, workdir
):
  claim(workdir, settled(own(photos), workdir))
  (workdir / "teacher").mkdir()
  for field, value in {
    "minutes": 7.0,
    "model.network.channels": 16,
    "seed": 3,
  }.items():
    other = settled(own(photos, **{field: value}), workdir)
    with pytest.raises(ValueError, match="made with another config"):
      claim(workdir, other)


def test_other_papers_may_join_a_run_of_own_images(photos, fast, workdir):
  begun = settled(own(photos), workdir)
  claim(workdir, begun)
  for name in begun["run"]:
    (workdir / name).mkdir()
  more = settled(own(photos, "all"), workdir)
  claim(workdir, more)
  halve = begun["stages"]["halve"]
  assert more["stages"]["halve"] == halve
  assert more["stages"]["moments"]["batch_size"] == halve["batch_size"]


@pytest.mark.parametrize(
  ("field", "named"),
  [
    ("seed", "seed"),
    ("stages.halve.start_steps", "stages.halve.start_steps"),
    ("evaluation.batch_size", "evaluation.batch_size"),
  ],
)
def test_a_field_that_cannot_be_chosen_is_refused(photos, fast, field, named):
  fields = put(own(photos), tuple(field.split(".")), "auto")
  with pytest.raises(ValueError, match=f"{named} is 'auto'"):
    from_config.build(fields)


def test_a_stage_without_a_share_of_the_minutes_is_refused(photos, fast):
  fields = own(photos)
  fields["shares"] = {"teacher": 1.0}
  with pytest.raises(ValueError, match=r"shares\.halve is None"):
    resolved_automatic(fields)


def test_a_config_without_such_fields_is_as_it_was(tiny_config):
  assert resolved_automatic(tiny_config).fields is tiny_config
