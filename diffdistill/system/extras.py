"""The command that installs an extra, such as "gcs", for messages."""


def installing(extra: str) -> str:
  """Says how to install an extra; the project is on no package index."""
  return f"run `pip install '.[{extra}]'` in a checkout of diffdistill"
