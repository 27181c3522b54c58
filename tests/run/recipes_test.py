import re

import pytest

from diffdistill.configs import digits
from diffdistill.run import recipes


@pytest.mark.parametrize("form", ["digits:long", "configs/digits.py:long"])
def test_a_recipe_is_found_from_any_folder(form, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipes.located(form) == f"{recipes.FOLDER}/digits.py:long"
  assert recipes.load(form) == digits.get_config("long")


def test_a_file_has_its_own_default_recipe(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipes.load("digits") == digits.get_config()


def test_a_file_that_is_there_wins(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  own = tmp_path / "configs" / "digits.py"
  own.parent.mkdir()
  own.write_text("def get_config(name='x'):\n  return {'name': name}\n")
  path = "configs/digits.py"
  assert recipes.located(path) == path
  assert recipes.load(f"{path}:mine") == {"name": "mine"}
  assert recipes.load(path) == {"name": "x"}
  assert recipes.load(f"~/{path}:mine") == {"name": "mine"}


@pytest.mark.parametrize(
  ("name", "remedy"),
  [
    ("digit:progressive", "did you mean digits:progressive"),
    ("digits:lnog", "did you mean digits:long"),
    ("digits_long", "did you mean digits:long"),
    ("zzz", "`diffdistill list` names the recipes"),
  ],
)
def test_an_unknown_name_is_refused_with_those_like_it(name, remedy):
  line = f"--config is '{name}', no file and no recipe; {remedy}"
  with pytest.raises(ValueError, match=re.escape(line)):
    recipes.located(name)


@pytest.mark.parametrize(
  "path", ["", "configs/nope.py:x", "nope.py", "a/digits:long"]
)
def test_a_file_that_is_missing_is_named_with_its_folder(
  path, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  whole = tmp_path / path.partition(":")[0]
  line = f"recipe is '{path}', but there is no file {whole}; `diffdistill list`"
  with pytest.raises(ValueError, match=re.escape(line)):
    recipes.load(path)


def test_a_file_of_another_language_is_refused(tmp_path):
  path = tmp_path / "config.json"
  path.touch()
  with pytest.raises(ValueError, match=r"no file of Python; pass FILE\.py"):
    recipes.load(str(path))
