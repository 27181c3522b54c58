"""The links of the pages lead somewhere, and their command lines are valid."""

import importlib.util
import itertools
import re
import sys
import urllib.parse

import pytest
import yaml
from absl import flags

from diffdistill.cli import reading, usage
from diffdistill.cli.commands import COMMANDS
from diffdistill.run import recipes
from diffdistill.tools.doctor import EXTRAS
from tests import pages
from tests.pages import ROOT

every_page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
# ml_collections loads config files with a deprecated function of Python, whose
# warning is ignored.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)


@every_page
def test_each_link_leads_to_a_file_and_to_a_heading(page):
  for link in pages.links(page):
    if urllib.parse.urlsplit(link).scheme:
      continue
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.is_file(), f"{link} leads to no file"
    assert ROOT in target.resolve().parents, f"{link} leaves the repository"
    if anchor:
      assert anchor in pages.anchors(target), f"{link} leads to no heading"


@every_page
def test_each_address_in_the_web_is_well_formed(page):
  # CI has no network, so it cannot be tested whether the address exists.
  for link in pages.links(page):
    parts = urllib.parse.urlsplit(link)
    if parts.scheme:
      assert parts.scheme == "https", link
      assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]+", parts.netloc), link
      assert re.fullmatch(r"[\w/.#@:-]+[\w/]", link), link


def test_the_site_has_every_page():
  nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
  listed = re.findall(r"[\w/]+\.md", str(nav))
  assert {path for path in listed if "/" not in path} == {
    "index.md",
    *(page.name for page in pages.DOCS),
  }


def check_diffdistill(words):
  if usage.answer(words) is None:
    name, *rest = words
    # init writes my.py as a copy of the recipes of `folder`.
    rest = [word.replace("--config=my.py", "--config=folder") for word in rest]
    try:
      reading.read(name, rest)
    finally:
      flags.FLAGS.unparse_flags()


def check_make(words):
  targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
  assert set(words) <= set(targets)


def check_pip(words):
  assert words[0] == "install"
  for before, word in itertools.pairwise(words):
    if before == "-r":
      assert (ROOT / word).is_file()
    if extras := re.fullmatch(r"\.\[(.*)\]", word):
      assert set(extras[1].split(",")) <= set(EXTRAS)


def check_python(words):
  if words[0] == "-m":
    assert importlib.util.find_spec(words[1])
  else:
    check_launcher(words)


def check_launcher(words):
  """Checks a script, and those of its words that are flags of a command."""
  (script,) = [word for word in words if word.startswith("launch/")]
  assert (ROOT / script).is_file()
  name = "run" if script.endswith("one_gpu.sh") else "train"
  own = {flag.name for flag in COMMANDS[name].flags}
  given = [w for w in words if re.split(r"[=.]", w)[0][2:] in own]
  # The script has a config of its own, unless it is given another one.
  if name == "run" and not any(word.startswith("--config=") for word in given):
    given = ["--config=cifar10:half_hour", *given]
  check_diffdistill([name, *given])


CHECKS = {
  "diffdistill": check_diffdistill,
  "make": check_make,
  "pip": check_pip,
  "python": check_python,
  "bash": check_launcher,
  "sbatch": check_launcher,
}


@every_page
def test_each_command_line_is_valid(page):
  for program, *words in pages.commands(page, CHECKS):
    try:
      CHECKS[program](words)
    except Exception as error:
      line = " ".join([program, *words])
      raise AssertionError(f"{line}\n{error}") from error


def test_pages_show_every_command():
  shown = {
    words[1]
    for page in pages.PAGES
    for words in pages.commands(page, {"diffdistill"})
  }
  # The page of commands shows the help of all of them.
  assert set(COMMANDS) - shown <= {"benchmark", "list", "run"}


@pytest.fixture(scope="module")
def configs():
  """Gives the config of every recipe, by the name of the recipe."""
  return {name: recipes.load(name) for name in recipes.descriptions()}


def has_field(config, path):
  for name in path.split("."):
    if not hasattr(config, "keys") or name not in config:
      return False
    config = config[name]
  return True


@every_page
def test_each_name_in_a_sentence_exists(page, configs):
  files = {name.partition(":")[0] for name in configs}
  for code in pages.short_codes(page):
    if field := re.match(r"--config\.([a-z][\w.]+)", code):
      assert any(has_field(c, field[1]) for c in configs.values()), code
    if recipe := re.fullmatch(r"(?:--config=)?(\w+):\w+", code):
      assert recipe[1] not in files or recipe[0].split("=")[-1] in configs, code
    if re.fullmatch(r"(launch|configs|results|tests)/[\w./]*", code):
      assert (ROOT / code).exists(), code
    name, *words = re.sub(r"^diffdistill ", "", code).split(" ")
    if name in COMMANDS:
      own = {flag.name for flag in COMMANDS[name].flags}
      given = re.findall(r"(?<=--)\w+", " ".join(words))
      assert set(given) <= {*own, "help"}, code


def test_the_manifest_of_the_pages_is_printed(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT / "launch"))
  import admit
  import jobset

  # Other tests check the recipes of the pages, and admit.py.
  monkeypatch.setattr(admit, "admitted", lambda accelerator, words: True)
  (words,) = [
    words
    for page in pages.PAGES
    for words in pages.commands(page, {"python"})
    if "launch/jobset.py" in words
  ]
  monkeypatch.setattr(sys, "argv", words[1:])
  assert jobset.main() == 0
  assert "kind: JobSet" in capsys.readouterr().out
