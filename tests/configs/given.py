"""The modules of configs/, and functions that look into a built recipe."""

import importlib

from diffdistill.run.recipes import descriptions

RECIPES = [tuple(name.split(":")) for name in descriptions()]
MODULES = {
  name: importlib.import_module(f"diffdistill.configs.{name}")
  for name, _ in RECIPES
}


def has(thing, **wanted):
  assert {name: getattr(thing, name) for name in wanted} == wanted


def stages_of(built):
  return {stage.name: stage for stage in built.stages}


def rounds_of(built, stage_name):
  return [r for s, r in built.rounds.values() if s.name == stage_name]
