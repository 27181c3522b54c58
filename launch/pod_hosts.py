"""A training on the hosts of a pod, through host.sh on each of them.

It does not need the launcher while it runs, and the hosts know how far it is.
"""

import dataclasses
import pathlib
import re

import shell
from patience import Patience
from queued_resource import QueuedResource
from shell import RefusalError, call, pause, say

# Where nothing was installed there is no host.sh.
STATE = "bash host.sh state || echo state $(hostname) 0 none"
# Looks at hosts of which some have ended, until the others are ended too: the
# processes of a training end within minutes of each other, if they can.
_LOOKS_UNTIL_ENDED = 10
# Failures in a row after which other hosts are rented.
_FAILURES_OF_A_POD = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a host says of its newest attempt.

  Args:
    host: its name.
    attempt: which; 0 where there was none.
    status: "running", an exit status of host.sh, or "none".
    words: why it ended.
  """

  host: str
  attempt: int
  status: str
  words: str


def reports(output: str) -> list[Report]:
  """One for each host that has answered STATE."""
  found = re.findall(r"^state (\S+) (\d+) (\S+) ?(.*)$", output, re.MULTILINE)
  # gcloud asks a host again where a connection breaks.
  by_host = {
    host: Report(host=host, attempt=int(attempt), status=status, words=words)
    for host, attempt, status, words in found
  }
  return list(by_host.values())


class PodHosts:
  """The hosts of an active queued resource.

  Args:
    resource: the pod.
    train: the command of every host.
    requirements: what is installed there.
    files: what is copied there.
    patience: with failures.
    poll_seconds: between looks, at first.
  """

  def __init__(
    self,
    resource: QueuedResource,
    train: list[str],
    requirements: list[str],
    files: tuple[pathlib.Path, ...],
    patience: Patience,
    poll_seconds: float,
  ):
    self._resource = resource
    self._train = train
    self._requirements = requirements
    self._files = files
    self._patience = patience
    self._poll_seconds = poll_seconds
    self._lines = 0  # of the log that were printed
    self._looks = 0  # in a row that changed nothing

  def states(self) -> list[str]:
    return self._resource.ssh(STATE)

  def copy(self) -> list[str]:
    return self._resource.copy(self._files)

  def install(self) -> list[str]:
    return self._host_sh("install", *self._requirements)

  def check(self) -> list[str]:
    r = self._resource
    return self._host_sh("check", str(r.devices), str(r.hosts))

  def start(self, attempt: int) -> list[str]:
    return self._host_sh("start", str(attempt), *self._train)

  def log(self, attempt: int, line: int) -> list[str]:
    return self._resource.ssh_first(f"bash host.sh log {attempt} {line}")

  def _host_sh(self, *words: str) -> list[str]:
    return self._resource.ssh(shell.join(["bash", "host.sh", *words]))

  def step(self) -> bool:
    """Does what the hosts need next; whether the training has finished.

    Raises:
      RefusalError: of the training, or where patience ends.
    """
    hosts = self._resource.hosts
    done = call(self.states())
    found = reports(done.output)
    # gcloud succeeds, with a warning, where it cannot reach a whole slice: only
    # the number of answers tells.
    if len(found) != hosts:
      self._failed(
        f"{len(found)} of {hosts} hosts answer: {done.reason}", bool(found)
      )
      return False
    newest = max(report.attempt for report in found)
    ended = [report for report in found if report.status != "running"]
    if newest == 0:
      self._begin(1)
    elif any(report.attempt < newest for report in found):
      # A launcher was killed, or a connection broke, while it started this one;
      # or a host was replaced.
      self._begin(newest, check=False)
    elif not ended:
      say(f"attempt {newest} runs on {hosts} hosts")
      self._follow(newest)
    elif len(ended) < hosts:
      self._let_end()
    else:
      if not self._lines:
        # It ended before it was looked at.
        self._follow(newest)
      return self._judge(found, newest)
    return False

  def _begin(self, attempt: int, check: bool = True) -> None:
    self._lines = self._looks = 0
    if not self._do(self.copy()) or not self._do(self.install()):
      return
    # Not beside a training, which has the chips.
    if not check or self._check():
      self._do(self.start(attempt))

  def _check(self) -> bool:
    r = self._resource
    done = call(self.check())
    seen = f" sees {r.devices} devices"
    good = sum(line.endswith(seen) for line in done.output.splitlines())
    if done.status or good != r.hosts:
      self._failed(
        f"{good} of {r.hosts} hosts see all {r.devices} chips: {done.reason}"
      )
      return False
    self._patience.passed("hosts")
    return True

  def _do(self, command: list[str]) -> bool:
    done = call(command)
    if done.status:
      self._failed(f"{command[4]} fails: {done.reason}")
    return not done.status

  def _failed(self, reason: str, some_answer: bool = True) -> None:
    count = self._patience.failed("hosts", reason)
    # Where no host answers it may be our own connection.
    if some_answer and count % _FAILURES_OF_A_POD == 0:
      say("giving these hosts up for others")
      call(self._resource.delete())

  def _follow(self, attempt: int) -> None:
    lines = shell.follow(self.log(attempt, self._lines + 1))
    self._lines += lines
    if lines:
      self._looks = 0
    else:
      pause(self._poll_seconds, self._looks)
      self._looks += 1

  def _let_end(self) -> None:
    self._looks += 1
    if self._looks > _LOOKS_UNTIL_ENDED:
      say("some hosts have ended and others have not: ending those")
      self._do(self._host_sh("stop"))
    pause(self._poll_seconds, 0)

  def _judge(self, found: list[Report], attempt: int) -> bool:
    by_status = {report.status: report for report in found}
    for status in ("1", "2"):
      if status in by_status:
        report = by_status[status]
        raise RefusalError(f"refused on {report.host}: {report.words}")
    if set(by_status) == {"0"}:
      return True
    if "70" in by_status:
      report = by_status["70"]
      self._patience.failed(
        "training", f"attempt {attempt} died on {report.host}: {report.words}"
      )
    else:
      say(f"attempt {attempt} was preempted and has saved")
    self._begin(attempt + 1)
    return False
