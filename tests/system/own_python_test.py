"""Our own processes import nothing from the current folder."""

import subprocess

from diffdistill.system import own_python


def test_a_file_named_like_a_package_is_not_imported(tmp_path):
  for name in ("diffdistill", "jax", "absl"):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('my own file')\n")
  done = subprocess.run(
    [*own_python.command("diffdistill"), "list"],
    env=own_python.environment(),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert "digits:progressive" in done.stdout
  assert (done.returncode, done.stderr) == (0, "")
