"""The parts of jobset.py's pods: their network, variables and folders."""

import json
import re
from typing import Any

# GPUs whose hosts GKE connects by GPUDirect RDMA. The H100's networks need a
# daemon whose version depends on the cluster, so they are left out.
WITH_RDMA = ("nvidia-h200-141gb", "nvidia-b200")
# The settings of Google's guide for RDMA, "Create a custom AI-optimized GKE
# cluster which uses A4 or A3 Ultra"
# (cloud.google.com/ai-hypercomputer/docs/create): a network for each of a
# host's eight GPUs, two folders of the host, and NCCL's variables. A cluster
# that is made as said there has networks of these names.
SETUP = "source /usr/local/gib/scripts/set_nccl_env.sh"
_FACES = {"eth0": "default", **{f"eth{i + 2}": f"rdma-{i}" for i in range(8)}}
_ANNOTATIONS = {
  "networking.gke.io/default-interface": "eth0",
  "networking.gke.io/interfaces": json.dumps(
    [{"interfaceName": face, "network": n} for face, n in _FACES.items()]
  ),
}
_FOLDERS = {"nvidia": "/usr/local/nvidia", "gib": "/usr/local/gib"}


def literal(text: str) -> str:
  """Escapes a text so that Kubernetes does not change it.

  In commands and variables, Kubernetes replaces $(NAME) by the value of NAME,
  and $$ by $ ("Define a Command and Arguments for a Container",
  kubernetes.io/docs/tasks/inject-data-application).
  """
  return text.replace("$", "$$")


def environment(pairs: list[str], secrets: list[str]) -> list[dict[str, Any]]:
  """The variables of a container from NAME=VALUE and NAME=SECRET/KEY.

  The value of a secret stays in the cluster; here it is only named.
  """
  found: list[dict[str, Any]] = []
  for pair in pairs:
    name, _, value = pair.partition("=")
    found.append({"name": name, "value": literal(value)})
  for pair in secrets:
    name, secret, key = re.split("[=/]", pair)
    reference = {"secretKeyRef": {"name": secret, "key": key}}
    found.append({"name": name, "valueFrom": reference})
  return found


def attached(name: str, rdma: bool) -> dict[str, Any]:
  """The annotations, volumes and mounts of a pod; `name` is its ConfigMap.

  Processes share memory in /dev/shm, whose usual 64 MiB are too small.
  """
  volumes: dict[str, Any] = {
    "launch": {"configMap": {"name": name}},
    "shm": {"emptyDir": {"medium": "Memory"}},
  }
  mounts = {
    "launch": "/launch",
    "shm": "/dev/shm",
    **(_FOLDERS if rdma else {}),
  }
  for folder in _FOLDERS if rdma else ():
    path = f"/home/kubernetes/bin/{folder}"
    volumes[folder] = {"hostPath": {"path": path}}
  return {
    "pod_annotations": _ANNOTATIONS if rdma else {},
    "volumes": [{"name": n, **volume} for n, volume in volumes.items()],
    "mounts": [{"name": n, "mountPath": path} for n, path in mounts.items()],
  }
