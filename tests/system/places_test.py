"""Tests that a path means what a person expects, or is refused."""

import importlib.util
import os
import pathlib

import pytest

from diffdistill.system.places import place, places, resolved


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  return str(tmp_path / "home")


def test_a_tilde_is_a_home_folder(home):
  assert str(place("--out", "~/x.png")) == f"{home}/x.png"
  assert str(place("--out", "~")) == home
  # A ~ within a path is no home folder, as in a shell.
  assert str(place("--out", "./~/x.png")) == "~/x.png"
  assert str(place("--out", "a~/b")) == "a~/b"


@pytest.mark.parametrize(
  "text", ["runs/a", "/runs/a,b", "lr=1e-3", "a [1] 100%25 é#?", "a:b", " "]
)
def test_other_paths_are_not_changed(text):
  assert str(place("--workdir", text)) == text


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_url_means_its_folder(host):
  assert str(place("--workdir", f"file://{host}/a/b")) == "/a/b"


def test_gs_is_accepted_if_its_package_is_installed(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  assert str(place("--workdir", "gs://bucket/a")) == "gs://bucket/a"


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ("s3://bucket/x", "but the only store that can be reached is gs://; pass"),
    ("az://c/x", "but the only store that can be reached is gs://; pass"),
    ("hdfs://n/x", "but the only store that can be reached is gs://; pass"),
    ("file://host/x", "which names another machine; pass file:///FOLDER, or"),
    ("file://x", "which names another machine; pass file:///FOLDER, or the fo"),
    ("~nobody-here/x", "but no home folder of nobody-here is known; pass the"),
  ],
)
def test_a_path_that_cannot_be_reached_is_refused_with_its_flag(text, line):
  with pytest.raises(ValueError, match="; pass ") as refusal:
    place("--workdir", text)
  assert str(refusal.value).startswith(f"--workdir is {text}, {line}")


def test_a_name_that_is_no_utf8_is_refused():
  text = os.fsdecode(b"l\xe4ufe")
  with pytest.raises(
    ValueError, match=r"--out is 'l.udce4ufe', a name that is"
  ):
    place("--out", text)


def test_an_existing_path_with_a_comma_is_one_path():
  pathlib.Path("a,b").mkdir()
  as_text = [str(p) for p in places("--workdir", ["a,b", "c,d", "e"])]
  assert as_text == ["a,b", "c", "d", "e"]


@pytest.mark.parametrize("value", ["a,", ",a", "a,,b", ""])
def test_an_empty_path_is_refused(value):
  with pytest.raises(ValueError, match="in which a path is empty; pass A, or"):
    places("--workdir", [value])


def test_the_paths_of_a_config_are_resolved(home):
  config = {
    "seed": 3,
    "run": ("teacher",),
    "data": {"source": {"path": "~/d.npz", "kind": "npz", "size": 3}},
    "evaluation": {"inception": "file:///w.pth"},
    "stages": {
      "teacher": {
        "source": "imported:~/model",
        "frozen": {"teacher": "path:~/run/teacher", "classifier": "classifier"},
      }
    },
    "model": {"origin": "https://example.com/model"},
  }
  assert resolved(config) == {
    **config,
    "data": {"source": {"path": f"{home}/d.npz", "kind": "npz", "size": 3}},
    "evaluation": {"inception": "/w.pth"},
    "stages": {
      "teacher": {
        "source": f"imported:{home}/model",
        "frozen": {
          "teacher": f"path:{home}/run/teacher",
          "classifier": "classifier",
        },
      }
    },
  }


def test_a_field_with_an_unreachable_path_is_named():
  with pytest.raises(ValueError, match=r"^data\.source\.path is s3://b/d, but"):
    resolved({"data": {"source": {"path": "s3://b/d"}}})
  with pytest.raises(ValueError, match=r"^stages\.a\.source is s3://b/d, but"):
    resolved({"stages": {"a": {"source": "path:s3://b/d"}}})
