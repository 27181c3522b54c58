"""`list` names the paper of every objective."""

import pathlib
import re

import yaml

import diffdistill
from diffdistill.objectives import OBJECTIVES


def test_every_objective_has_its_paper(run_cli, capsys):
  assert run_cli("list", "--bibtex") == 0
  printed = capsys.readouterr().out
  found = re.findall(r"keywords = \{(.*)\}", printed)
  names = [name for keywords in found for name in keywords.split(", ")]
  # Classification trains by cross-entropy, which needs no paper.
  assert set(names) == set(OBJECTIVES) - {"classification"}
  assert len(re.findall(r"eprint = \{\d{4}\.\d{5}\}", printed)) == len(found)


def test_the_citation_file_has_the_version_of_the_package():
  file = pathlib.Path(__file__).parents[2] / "CITATION.cff"
  citation = yaml.safe_load(file.read_text())
  assert citation["version"] == diffdistill.__version__
  assert citation["authors"] == [{"name": "The diffdistill authors"}]
