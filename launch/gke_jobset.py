"""Trains in a GKE cluster as a JobSet, on slices of TPUs or nodes with GPUs.

  python launch/gke_jobset.py --name=moments --spot \\
    --accelerator=v5litepod-256 \\
    --package=git+https://github.com/OWNER/diffdistill@v0.1.0 \\
    --config=configs/imagenet64.py:moment_matching \\
    --workdir=gs://bucket/runs/moments

or with --gpu=nvidia-h100-80gb --gpus_per_node=8 --nodes=4 for --accelerator. It
applies the manifest, waits while the cluster runs and restarts the training,
and deletes it at the end, also when it is refused or interrupted. The same
command can be run again at any time, and finds what runs.

Exit status 0: finished; 1: refused, a person must act; 2: bad usage; 130:
interrupted.
"""

import argparse
import json
import sys
from typing import Any

import jobset_manifest
import shell
import topology
import yaml
from jobset_manifest import Training
from shell import RefusalError, call, pause, say

_FOR_A_PERSON = (
  "Unauthorized",
  "Forbidden",
  "forbidden",
  "is invalid",
  "current-context is not set",
)
# What JobSet calls the rule of the manifest.
_REFUSED = "FailJobSetFailurePolicyAction"
_NO_JOBSET = ("no matches for kind", "doesn't have a resource type")


class Cluster:
  """A training in the cluster that kubectl talks to."""

  def __init__(self, training: Training):
    self._training = training
    self._objects = training.objects()
    self._is_ours = False  # what has the name
    self.manifest = yaml.dump_all(
      self._objects, Dumper=_Dumper, sort_keys=False, width=1000
    )

  def _kubectl(self, *arguments: str) -> list[str]:
    return ["kubectl", *arguments, f"--namespace={self._training.namespace}"]

  def _selected(self) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={self._training.name}"

  def get(self) -> list[str]:
    return self._kubectl(
      *("get", "jobset", self._training.name),
      *("--ignore-not-found", "--output=json"),
    )

  def apply(self) -> list[str]:
    return self._kubectl("apply", "--filename=-")

  def delete(self) -> list[str]:
    return self._kubectl("delete", "--filename=-", "--ignore-not-found")

  def logs(self) -> list[str]:
    return self._kubectl("logs", self._selected(), "--tail=50")

  def watch(self) -> list[str]:
    first = f"{self._selected()},batch.kubernetes.io/job-completion-index=0"
    return self._kubectl("logs", first, "--tail=-1", "--follow")

  def look(self) -> dict[str, Any] | None:
    """The JobSet as the cluster has it; None where it has none.

    Raises:
      RefusalError: where it may not say, or another run has the name.
      ConnectionError: where it cannot say now.
    """
    done = call(self.get())
    if done.status:
      self._refuse(done)
      raise ConnectionError(done.reason)
    found = json.loads(done.output) if done.output.strip() else None
    if found and _command(found) != _command(self._objects[-1]):
      raise RefusalError(
        f"{self._training.name} exists already and trains something else; pass"
        " another --name, or kubectl delete jobset it"
      )
    self._is_ours = True
    return found

  def create(self) -> None:
    done = call(self.apply(), self.manifest)
    if done.status:
      self._refuse(done)
      raise ConnectionError(done.reason)

  def tear_down(self) -> None:
    if not self._is_ours:
      return
    done = call(self.delete(), self.manifest)
    if done.status:
      raise RefusalError(
        f"kubectl does not delete it: {done.reason}; by hand: {self._by_hand()}"
      )

  def keep(self) -> None:
    say(f"kept; to delete: {self._by_hand()}")

  def _by_hand(self) -> str:
    name = self._training.name
    kinds = "jobset,configmap,role,rolebinding"
    return shell.join(
      self._kubectl("delete", kinds, name, "--ignore-not-found")
    )

  def reason(self, failed: dict[str, Any]) -> str:
    """Why it failed, in the training's own words where it was refused."""
    otherwise = failed.get("message", "the JobSet has failed")
    if failed.get("reason") != _REFUSED:
      return otherwise
    lines = call(self.logs()).output.splitlines()
    own = [line for line in lines if line.startswith("diffdistill: ")]
    return (own or [otherwise])[-1]

  def _refuse(self, done: shell.Done) -> None:
    if any(words in done.errors for words in _NO_JOBSET):
      raise RefusalError(
        "the cluster has no JobSet; install it as jobset.sigs.k8s.io/docs/"
        "installation says"
      )
    if any(words in done.errors for words in _FOR_A_PERSON):
      raise RefusalError(f"kubectl is refused: {done.reason}")


class _Dumper(yaml.SafeDumper):
  """Writes texts of many lines as they are, and nothing by reference."""

  def ignore_aliases(self, data: Any) -> bool:
    return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
  style = "|" if "\n" in text else None
  return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _command(jobset: dict[str, Any]) -> list[str]:
  [job] = jobset["spec"]["replicatedJobs"]
  [container] = job["template"]["spec"]["template"]["spec"]["containers"]
  return container["command"]


def _wait(cluster: Cluster, poll_seconds: float, max_failures: int) -> None:
  """Applies the manifest if need be; returns when the training has finished."""
  said, looks, failures = None, 0, 0
  while True:
    try:
      jobset = cluster.look()
      if jobset is None:
        cluster.create()
        say(f"applied; to watch: {shell.join(cluster.watch())}")
      failures = 0
    except ConnectionError as error:
      failures += 1
      if failures >= max_failures:
        raise RefusalError(f"{error}; {failures} failures in a row") from error
      say(f"{error}; failure {failures} in a row, trying again")
      pause(poll_seconds, failures - 1)
      continue
    status = (jobset or {}).get("status", {})
    for condition in status.get("conditions", []):
      if condition["status"] == "True" and condition["type"] == "Completed":
        return
      if condition["status"] == "True" and condition["type"] == "Failed":
        raise RefusalError(cluster.reason(condition))
    now = f"restarts: {status.get('restarts', 0)}"
    if now != said:
      say(now)
      said, looks = now, 0
    pause(poll_seconds, looks)
    looks += 1


def _parser() -> shell.Parser:
  parser = shell.Parser(__doc__)
  add = parser.add_argument
  add("--accelerator", help="TPUs, such as v5litepod-256")
  add("--slices", type=int, default=1, help="of TPUs, that train together")
  add("--gpu", help="instead: GKE's name of one, such as nvidia-h100-80gb")
  add("--gpus_per_node", type=int, default=8)
  add("--nodes", type=int, default=1, help="with GPUs")
  add("--namespace", default="default")
  add("--image", default="python:3.12", help="with bash, curl and git")
  add(
    "--package",
    help="git+https://...@REF; without it the image has diffdistill",
  )
  add("--service_account", help="of Kubernetes, that may use the bucket")
  add("--max_restarts", type=int, default=100, help="refusals are never")
  add("--max_failures", type=int, default=8, help="of kubectl in a row")
  return parser


def _nodes(flags: argparse.Namespace) -> jobset_manifest.Nodes:
  for name in ("slices", "gpus_per_node", "nodes", "max_failures"):
    if getattr(flags, name) < 1:
      raise RefusalError(f"--{name} is {getattr(flags, name)}; pass 1 or more")
  if (flags.accelerator is None) == (flags.gpu is None):
    raise RefusalError(
      f"--accelerator is {flags.accelerator} and --gpu {flags.gpu}; pass one"
    )
  if flags.gpu is None:
    slice_ = topology.parse(flags.accelerator)
    return jobset_manifest.tpu_nodes(slice_, flags.slices)
  return jobset_manifest.gpu_nodes(flags.gpu, flags.nodes, flags.gpus_per_node)


def main() -> int:
  flags, overrides = _parser().read()
  nodes = _nodes(flags)
  if (flags.package or "").endswith(".whl"):
    raise RefusalError(
      f"--package is {flags.package!r}; pass git+https://...@REF, or build an"
      " --image that has it"
    )
  requirements = (
    shell.requirements(flags.package, flags.extras, nodes.jax_extra)
    if flags.package
    else []
  )
  hosts = nodes.replicas * nodes.hosts
  cluster = Cluster(
    Training(
      name=flags.name,
      namespace=flags.namespace,
      nodes=nodes,
      spot=flags.spot,
      image=flags.image,
      requirements=tuple(requirements),
      command=tuple(
        shell.train_command(flags, overrides, nodes.devices, hosts)
      ),
      service_account=flags.service_account,
      max_restarts=flags.max_restarts,
    )
  )
  if flags.dry_run:
    for command in (cluster.get(), cluster.apply(), cluster.delete()):
      print(f"# {shell.join(command)}")
    print(cluster.manifest, end="")
    return 0
  shell.need("kubectl", "install it: https://kubernetes.io/docs/tasks/tools")
  end = cluster.keep if flags.keep else cluster.tear_down
  shell.finally_do(
    end, lambda: _wait(cluster, flags.poll_seconds, flags.max_failures)
  )
  say("finished")
  return 0


if __name__ == "__main__":
  sys.exit(shell.guard(main))
