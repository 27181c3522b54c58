"""A training as a JobSet, with what restarts it and what does not.

Sources: "Failure Policy" of JobSet (jobset.sigs.k8s.io/docs/tasks), "Handling
retriable and non-retriable pod failures with Pod failure policy"
(kubernetes.io/docs/tasks/job/pod-failure-policy), "Deploy TPU Multislices in
GKE" (cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice) and "Run
GPUs in GKE Standard node pools" (.../how-to/gpus). JAX finds its processes from
what GKE tells pods with TPUs; with GPUs it asks the cluster, which needs the
role below (docs.jax.dev/en/latest/multi_process.html).
"""

import dataclasses
from typing import Any

import shell
from topology import Slice

_CONTAINER = "train"
_JOB = "slice"
# The statuses of host.sh that a person must act on.
_REFUSED = [1, 2]
_DAY = 24 * 60 * 60
_MOUNT = "/launch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nodes:
  """What the pods of a training run on: one pod a node, one process a pod.

  Args:
    replicas: slices of TPUs; 1 for GPUs.
    hosts: nodes of each.
    devices: of all together.
    limits: what a pod has of a node, such as {"google.com/tpu": 4}.
    selector: of the nodes.
    taints: of the nodes, that pods must tolerate.
    jax_extra: what JAX needs there.
    environment: of the container.
  """

  replicas: int
  hosts: int
  devices: int
  limits: dict[str, int]
  selector: dict[str, str]
  taints: tuple[str, ...]
  jax_extra: str
  environment: dict[str, str]

  @property
  def has_gpus(self) -> bool:
    return "nvidia.com/gpu" in self.limits


def tpu_nodes(slice_: Slice, num_slices: int) -> Nodes:
  return Nodes(
    replicas=num_slices,
    hosts=slice_.hosts,
    devices=num_slices * slice_.chips,
    limits={"google.com/tpu": slice_.chips // slice_.hosts},
    selector={
      "cloud.google.com/gke-tpu-accelerator": slice_.gke,
      "cloud.google.com/gke-tpu-topology": slice_.topology,
    },
    taints=("google.com/tpu",),
    jax_extra="tpu",
    environment={},
  )


def gpu_nodes(gpu: str, num_nodes: int, per_node: int) -> Nodes:
  return Nodes(
    replicas=1,
    hosts=num_nodes,
    devices=num_nodes * per_node,
    limits={"nvidia.com/gpu": per_node},
    selector={"cloud.google.com/gke-accelerator": gpu},
    taints=("nvidia.com/gpu",),
    jax_extra="cuda12,k8s",
    # Where GKE puts the driver.
    environment={"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """What a manifest is made of.

  Args:
    name, namespace: of its objects.
    nodes: that it runs on.
    spot: whether they can be taken away.
    image: of the container; any with bash, curl and git where `requirements`
      are to be installed, else one that has diffdistill.
    requirements: to install, or none.
    command: the training.
    service_account: that may use the bucket; None for the default one.
    max_restarts: of the whole, for whatever reason but a refusal.
  """

  name: str
  namespace: str
  nodes: Nodes
  spot: bool
  image: str
  requirements: tuple[str, ...]
  command: tuple[str, ...]
  service_account: str | None
  max_restarts: int

  def objects(self) -> list[dict[str, Any]]:
    """The manifest: a ConfigMap, the rights that JAX needs, the JobSet."""
    files = {path.name: path.read_text() for path in shell.HOST_FILES}
    return [
      self._object("v1", "ConfigMap", data=files),
      *(self._rights() if self.nodes.has_gpus else []),
      self._jobset(),
    ]

  def _object(self, version: str, kind: str, **fields: Any) -> dict[str, Any]:
    metadata = {"name": self.name, "namespace": self.namespace}
    return {
      "apiVersion": version,
      "kind": kind,
      "metadata": metadata,
      **fields,
    }

  def _rights(self) -> list[dict[str, Any]]:
    rbac = "rbac.authorization.k8s.io"
    account = self.service_account or "default"
    return [
      self._object(
        f"{rbac}/v1",
        "Role",
        rules=[
          {
            "apiGroups": [""],
            "resources": ["pods", "services"],
            "verbs": ["get", "list"],
          },
          {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
        ],
      ),
      self._object(
        f"{rbac}/v1",
        "RoleBinding",
        subjects=[
          {
            "kind": "ServiceAccount",
            "name": account,
            "namespace": self.namespace,
          }
        ],
        roleRef={"apiGroup": rbac, "kind": "Role", "name": self.name},
      ),
    ]

  def _jobset(self) -> dict[str, Any]:
    jobset = self._object(
      "jobset.x-k8s.io/v1alpha2",
      "JobSet",
      spec={
        "ttlSecondsAfterFinished": _DAY,
        "failurePolicy": {
          "maxRestarts": self.max_restarts,
          # No pod of the last attempt is left when the next one starts.
          "restartStrategy": "BlockingRecreate",
          # What no rule names restarts all jobs.
          "rules": [
            {
              "name": "refused",
              "action": "FailJobSet",
              "onJobFailureReasons": ["PodFailurePolicy"],
            }
          ],
        },
        "replicatedJobs": [
          {
            "name": _JOB,
            "replicas": self.nodes.replicas,
            "template": {"spec": self._job()},
          }
        ],
      },
    )
    if not self.nodes.has_gpus:
      # A slice is a node pool, and has one job.
      jobset["metadata"]["annotations"] = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": (
          "cloud.google.com/gke-nodepool"
        )
      }
    return jobset

  def _job(self) -> dict[str, Any]:
    return {
      "parallelism": self.nodes.hosts,
      "completions": self.nodes.hosts,
      "completionMode": "Indexed",
      # One pod that ends ends them all: they wait for each other.
      "backoffLimit": 0,
      "podFailurePolicy": {
        "rules": [
          {
            "action": "FailJob",
            "onExitCodes": {
              "containerName": _CONTAINER,
              "operator": "In",
              "values": _REFUSED,
            },
          }
        ]
      },
      "template": {"spec": self._pod()},
    }

  def _pod(self) -> dict[str, Any]:
    spot = {"cloud.google.com/gke-spot": "true"} if self.spot else {}
    taints = [*self.nodes.taints, *spot]
    account = self.service_account
    return {
      "restartPolicy": "Never",
      # For a checkpoint after SIGTERM; spot nodes have less.
      "terminationGracePeriodSeconds": 120,
      **({"serviceAccountName": account} if account else {}),
      "nodeSelector": {**self.nodes.selector, **spot},
      "tolerations": [
        {"key": taint, "operator": "Exists", "effect": "NoSchedule"}
        for taint in taints
      ],
      "volumes": [{"name": "launch", "configMap": {"name": self.name}}],
      "containers": [
        {
          "name": _CONTAINER,
          "image": self.image,
          "command": ["bash", "-c", _literal(self._script())],
          "env": [
            {"name": name, "value": _literal(value)}
            for name, value in self.nodes.environment.items()
          ],
          "resources": {"limits": self.nodes.limits},
          "volumeMounts": [{"name": "launch", "mountPath": _MOUNT}],
        }
      ],
    }

  def _script(self) -> str:
    host_sh = ["bash", f"{_MOUNT}/host.sh"]
    run = f"exec {shell.join([*host_sh, 'run', *self.command])}"
    if not self.requirements:
      return run
    install = shell.join([*host_sh, "install", *self.requirements])
    # A package index that is away for a while is no refusal.
    return f"{install} || exit 70; {run}"


def _literal(text: str) -> str:
  """A text that Kubernetes does not expand.

  It puts the variable NAME for $(NAME) and one dollar for two, in commands and
  in variables ("Define a Command and Arguments for a Container",
  kubernetes.io/docs/tasks/inject-data-application).
  """
  return text.replace("$", "$$")
