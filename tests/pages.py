"""Reads the repository's pages: their links, headings, code and commands."""

import itertools
import pathlib
import re
import shlex

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING")] + DOCS
MARKDOWN = MarkdownIt("commonmark").enable("table")


def name_of(page):
  """The path of a page in the repository, which names its test."""
  return str(page.relative_to(ROOT))


def tokens(page):
  """Gives the pieces of a page, in order, also those inside paragraphs."""
  for token in MARKDOWN.parse(page.read_text()):
    yield token
    yield from token.children or ()


def links(page):
  """Lists the targets of all links and pictures of a page."""
  found = (t.attrGet("href") or t.attrGet("src") for t in tokens(page))
  return [str(target) for target in found if target]


def anchors(page):
  """Gives the anchors of a page's headings, as they are made from the words."""
  headings = [
    after.content
    for before, after in itertools.pairwise(tokens(page))
    if before.type == "heading_open"
  ]
  words = (re.sub(r"[^\w\s-]", "", text.lower()) for text in headings)
  return {re.sub(r"\s+", "-", text.strip()) for text in words}


def short_codes(page):
  """Lists the pieces of code inside the sentences and tables of a page."""
  return [t.content for t in tokens(page) if t.type == "code_inline"]


def commands(page, programs):
  """Lists the command lines of a page's blocks of code, each as its words.

  Args:
    page: the page.
    programs: the first words of the lines that are command lines.
  """
  found = []
  for token in tokens(page):
    if token.type != "fence" or token.info:
      continue
    for line in token.content.replace("\\\n", " ").splitlines():
      if line.split(" ")[0] in programs:
        words = shlex.split(line, comments=True)
        ends = (words.index(sign) for sign in ("|", ">") if sign in words)
        found.append(words[: min(ends, default=None)])
  return found
