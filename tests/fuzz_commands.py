"""Runs some changed recipes and flags as real commands; not part of CI.

  python tests/fuzz_commands.py [NUMBER] [SEED]

Each command must be refused in one line, or begin to train. A training gets
SIGTERM and must end with status 75. Each command takes about 15 s.
"""

import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.fuzz_mutations import Mutation, mutations, source_of  # noqa: E402

# Seconds until an accepted command gets SIGTERM, and until it must have ended.
RUNS, LEAVES = 40, 120


def command(mutation: Mutation, folder: pathlib.Path) -> list[str]:
  """Builds the command line of a mutation; its files are in the folder."""
  file, _, recipe = mutation.recipe.partition(":")
  config = f"--config={ROOT}/configs/{file}.py:{recipe}"
  if mutation.fields is not None:
    path = folder / "config.py"
    path.write_text(source_of(mutation.fields))
    config = f"--config={path}"
  places = [config]
  if mutation.command in ("sample", "evaluate", "export"):
    places = []
  if mutation.command not in ("plan", "benchmark"):
    places.append(f"--workdir={folder}/run")
  return [mutation.command, *places, *mutation.flags]


def fault(mutation: Mutation) -> str:
  """Describes what was wrong with how a command ended; "" if nothing was."""
  with tempfile.TemporaryDirectory() as folder:
    line = command(mutation, pathlib.Path(folder))
    if any("\0" in word or len(word) > 100_000 for word in line):
      return ""  # No system can start such a command.
    child = subprocess.Popen(
      [sys.executable, "-m", "diffdistill", *line],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    told = False
    try:
      _, printed = child.communicate(timeout=RUNS)
    except subprocess.TimeoutExpired:
      told = True
      child.send_signal(signal.SIGTERM)
      try:
        _, printed = child.communicate(timeout=LEAVES)
      except subprocess.TimeoutExpired:
        child.kill()
        return f"did not leave within {LEAVES} s"
  if "Traceback" in printed:
    return f"{child.returncode}, a traceback: {printed.splitlines()[-1]}"
  refused = child.returncode in (1, 2) and printed.startswith("diffdistill: ")
  if refused and printed.count("\n") != 1:
    return f"{child.returncode}, more than a line: {printed[:300]!r}"
  if not (refused or child.returncode in ((0, 75, 143) if told else (0,))):
    return f"{child.returncode}: {printed[-300:]!r}"
  return ""


def main(number: int = 50, seed: int = 1) -> int:
  chosen = [
    mutation
    for mutation in mutations(3 * number, seed)
    if mutation.recipe.startswith("digits") or mutation.command != "train"
  ][:number]
  faults = 0
  for mutation in chosen:
    began = time.monotonic()
    wrong = fault(mutation)
    faults += bool(wrong)
    seconds = time.monotonic() - began
    print(f"{wrong or 'ok':<4} {seconds:4.0f} s  {mutation}", flush=True)
  print(f"{len(chosen)} commands, {faults} faults")
  return int(faults > 0)


if __name__ == "__main__":
  sys.exit(main(*map(int, sys.argv[1:])))
