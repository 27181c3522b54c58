"""Writes the results of other libraries for seeded features to a JSON file.

Run `python tests/evaluation/make_golden_metrics.py` once, with torch,
pytorch-fid, torch-fidelity and scipy installed. It writes golden_metrics.json.
The test makes the same features with numpy alone.
"""

import json
import pathlib
import runpy

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_metrics.json")
TESTS = pathlib.Path(__file__).parents[1]
DIM, CLASSES = 24, 10
# The size and the number of subsets of the kernel distance.
SUBSET_SIZE, SUBSETS = 100, 20
# For each case, the numbers of (real, generated) features.
CASES = {"near": (400, 350), "far": (300, 420)}


def features(name):
  """Real and generated features: means of ReLUs, like a network's pooling."""
  real, generated = CASES[name]
  random = np.random.RandomState(len(name))
  mix = random.standard_normal((DIM, DIM)) / np.sqrt(DIM)
  shift = 0.1 if name == "near" else 0.8
  sides = (
    random.standard_normal((real, DIM)) @ mix,
    random.standard_normal((generated, DIM)) @ (1.2 * mix) + shift,
  )
  return [np.maximum(side, -0.5).astype(np.float32) for side in sides]


def logits():
  random = np.random.RandomState(7)
  return (3 * random.standard_normal((130, CLASSES))).astype(np.float32)


def answer(name):
  import torch
  from pytorch_fid.fid_score import calculate_frechet_distance
  from torch_fidelity.metric_kid import kid_features_to_metric
  from torch_fidelity.metric_prc import prc_features_to_metric

  real, generated = features(name)
  moments = [
    (side.mean(axis=0), np.cov(side, rowvar=False))
    for side in (real.astype(np.float64), generated.astype(np.float64))
  ]
  # torch-fidelity takes the generated features first.
  sides = torch.from_numpy(generated), torch.from_numpy(real)
  kid = kid_features_to_metric(
    *sides, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, verbose=False
  )
  prc = prc_features_to_metric(*sides, verbose=False)
  return {
    "fid": float(calculate_frechet_distance(*moments[0], *moments[1])),
    "kid": kid["kernel_inception_distance_mean"],
    "kid_std": kid["kernel_inception_distance_std"],
    "precision": prc["precision"],
    "recall": prc["recall"],
  }


def main():
  # pytorch-fid needs torchvision, which this file may have to repair.
  maker = TESTS / "interop" / "make_golden_inception.py"
  runpy.run_path(str(maker))["pytorch_fid_inception"]()
  import torch
  from torch_fidelity.metric_isc import isc_features_to_metric

  golden = {name: answer(name) for name in CASES}
  golden["inception_score"] = isc_features_to_metric(
    torch.from_numpy(logits()), splits=10, shuffle=False
  )
  GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main()
