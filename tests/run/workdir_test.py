import copy

import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.run.workdir import claim, stored_config
from diffdistill.system import hosts
from diffdistill.system.files import write_json


def test_a_workdir_belongs_to_its_config(edited, tiny_config, tmp_path):
  workdir = epath.Path(tmp_path) / "runs" / "a"
  built = from_config.build(tiny_config)
  claim(workdir, built.config)
  claim(workdir, built.config)
  assert stored_config(workdir) == built.config
  for stage in ("teacher", "halve"):
    (workdir / stage).mkdir()
  for path, value in (
    ("seed", 4),
    ("model.network.width", 10),
    ("stages.halve.optimizer.clip", 2.0),
    ("data.flip", False),
    ("run", ("teacher",)),
  ):
    other = from_config.build(edited(path, value))
    with pytest.raises(ValueError, match="made with another config") as error:
      claim(workdir, other.config)
    assert f"{path} is " in str(error.value)
    assert "pass a new --workdir" in str(error.value)
  assert stored_config(workdir) == built.config


def test_fields_that_do_not_change_the_training_may_change(edited, tmp_path):
  workdir = epath.Path(tmp_path)
  claim(workdir, from_config.build(edited("seed", 3)).config)
  for path, value in (
    ("cadence.checkpoint", 50),
    ("evaluation.num_images", 50),
    ("mesh.fsdp", 8),
    ("mesh.overrides", (("bias", -1),)),
  ):
    claim(workdir, from_config.build(edited(path, value)).config)


def test_hosts_with_separate_disks_are_refused(
  tiny_config, tmp_path, monkeypatch
):
  # This host sees another disk: the first process's file does not exist here.
  monkeypatch.setattr(hosts, "on_first", lambda act: None)
  workdir = epath.Path(tmp_path) / "new"
  with pytest.raises(ValueError, match="is not the same folder on every host"):
    claim(workdir, from_config.build(tiny_config).config)


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"holds no run \(it has no config"):
    stored_config(epath.Path(tmp_path))


def test_a_damaged_config_is_refused(tiny_config, tmp_path):
  path = tmp_path / "config.json"
  built = from_config.build(tiny_config)
  claim(epath.Path(tmp_path), built.config)
  changed = path.read_text().replace('"seed": 3', '"seed": 4')
  for text in ("{", "", "[]", "{}", "[" * 100_000, "\ud800", changed):
    path.write_bytes(text.encode(errors="surrogatepass"))
    for read in (stored_config, lambda path: claim(path, built.config)):
      with pytest.raises(ValueError, match=r"damaged: .*; restore") as refusal:
        read(epath.Path(tmp_path))
      assert "\n" not in str(refusal.value)
  path.unlink()
  path.mkdir()
  with pytest.raises(IsADirectoryError):
    stored_config(epath.Path(tmp_path))


@pytest.mark.parametrize(
  ("field", "value"),
  [("run", "teacher"), ("stages", None), ("data", [1]), ("model", 3)],
)
def test_a_config_without_the_parts_of_a_run_is_refused(
  tiny_config, tmp_path, field, value
):
  built = from_config.build(tiny_config)
  write_json(tmp_path / "config.json", {**built.config, field: value})
  with pytest.raises(ValueError, match=f"no config of a run: its '{field}' is"):
    claim(epath.Path(tmp_path), built.config)


def test_a_stage_that_has_not_begun_may_change(edited, tiny_config, tmp_path):
  workdir = epath.Path(tmp_path)
  claim(workdir, from_config.build(tiny_config).config)
  (workdir / "teacher").mkdir()
  changed = from_config.build(edited("stages.halve.optimizer.clip", 2.0)).config
  claim(workdir, changed)
  assert stored_config(workdir) == changed
  claim(workdir, from_config.build(edited("run", ("teacher",))).config)
  with pytest.raises(ValueError, match=r"stages\.teacher\.num_updates is 18"):
    claim(
      workdir,
      from_config.build(edited("stages.teacher.num_updates", 19)).config,
    )


def test_a_run_continues_with_data_in_another_folder(tiny_config, tmp_path):
  workdir = epath.Path(tmp_path)
  config = from_config.build(tiny_config).config
  claim(workdir, config)
  moved = copy.deepcopy(config)
  moved["data"]["source"]["path"] = "elsewhere.npz"
  claim(workdir, moved)
  assert stored_config(workdir) == moved
