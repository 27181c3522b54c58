"""Writes the pages of the site into a folder, for the tool that builds HTML.

README becomes index.md, and commands.md gets the help of every command. A page
may link to any file of the repository, such as ../results/digits_curve.png:
the file is copied into files/, and the link is changed. So one link works in
the repository and on the site.

  python docs/pages.py FOLDER
"""

import os
import posixpath
import re
import shutil
import sys
from pathlib import Path

from diffdistill.cli import commands, usage

ROOT = Path(__file__).parent.parent
# These pages are in files/ even if no page links to them.
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")
# The target of a link or of a picture in Markdown, without its anchor.
TARGET = re.compile(r"(?<=\]\()(?!\w+:)[^)\s#]+(?=#[^)\s]*\)|\))")
HELP = re.compile(r"<!-- .* -->\n")


def place(path: str) -> str:
  """The place in the site of a file of the repository, both relative."""
  if path == "README.md":
    return "index.md"
  return path.removeprefix("docs/") if path.startswith("docs/") else _copy(path)


def _copy(path: str) -> str:
  return f"files/{path}"


def targets(path: str, text: str) -> set[str]:
  """The files of the repository to which the Markdown of a page links."""
  return {_target(path, target) for target in TARGET.findall(text)}


def _target(page: str, target: str) -> str:
  return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def moved(path: str, text: str) -> str:
  """The text of a page, with links that suit the site."""
  here = posixpath.dirname(place(path))

  def link(found: re.Match[str]) -> str:
    return posixpath.relpath(place(_target(path, found[0])), here or ".")

  return TARGET.sub(link, text)


def helps() -> str:
  """The help of every command, in Markdown."""
  return "\n".join(
    f"## {name}\n\n```\n{usage.explanation(name)}\n```\n"
    for name in commands.COMMANDS
  )


def main(folder: Path) -> None:
  """Writes all pages, and all files to which they link.

  Args:
    folder: the folder, which is emptied first.
  """
  shutil.rmtree(folder, ignore_errors=True)
  pages = sorted((ROOT / "docs").glob("*.md"))
  waiting = ["README.md", *ALWAYS, *(f"docs/{page.name}" for page in pages)]
  done: set[str] = set()
  while waiting:
    path = waiting.pop()
    source, goal = ROOT / path, folder / place(path)
    # mkdocs names a link to a missing file itself.
    if path in done or not source.is_file():
      continue
    done.add(path)
    os.makedirs(goal.parent, exist_ok=True)
    if source.suffix != ".md":
      shutil.copy(source, goal)
      continue
    text = source.read_text()
    waiting += targets(path, text)
    text = moved(path, text)
    goal.write_text(HELP.sub(lambda _: helps(), text))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
