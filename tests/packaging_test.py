"""Tests that the installed package has its templates and its recipes."""

import os
import pathlib
import re
import shutil
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "diffdistill"


def test_no_message_installs_the_project_from_a_package_index():
  for path in (*PACKAGE.rglob("*.py"), *(ROOT / "launch").glob("*")):
    if path.is_file():
      text = path.read_text()
      assert not re.search(r"install[ \"\n]+'?diffdistill\[", text), path


@pytest.mark.slow
def test_a_wheel_made_of_an_sdist_is_complete(children, tmp_path):
  source, site, elsewhere = (
    tmp_path / name for name in ("source", "site", "elsewhere")
  )
  elsewhere.mkdir()
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  for name in ("diffdistill", "configs"):
    shutil.copytree(
      ROOT / name,
      source / name,
      symlinks=True,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  children.run(
    *(sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, source),
    check=True,
  )
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if ".dist-info/" not in n}
    archive.extractall(site)
  # The link configs is listed apart, because rglob does not follow links.
  files = [*PACKAGE.rglob("*"), *(PACKAGE / "configs").rglob("*")]
  assert names == {
    str(path.relative_to(ROOT))
    for path in files
    if path.is_file() and path.suffix != ".pyc"
  }
  code = """
import diffdistill
from diffdistill import __main__
from diffdistill.run import recipes
print(diffdistill.__file__)
print(recipes.load("digits:progressive").run)
__main__.main()
"""
  done = children.run(
    *(sys.executable, "-c", code, "list"),
    cwd=elsewhere,
    env={**os.environ, "PYTHONPATH": str(site)},
    check=True,
  )
  file, stages, *listed = done.stdout.splitlines()
  assert file == str(site / "diffdistill" / "__init__.py")
  assert stages == "('classifier', 'teacher', 'halve')"
  assert any(line.startswith("  digits:progressive ") for line in listed)
