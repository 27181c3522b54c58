"""A browser as wide as a phone shows the whole page and loads nothing."""

import html
import json
import re
import shutil

import pytest
from etils import epath

from diffdistill.reporting.page import write_report

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
PHONE, SMALL, DESK = 390, 400, 1280
# A window cannot be as narrow as a phone, so the page is in a frame.
FRAMES = """<!doctype html>
{frames}
<script>
addEventListener("load", () => {{
  const read = (frame) => {{
    const page = frame.contentDocument, root = page.documentElement;
    const width = frame.contentWindow.innerWidth;
    const out = [...page.querySelectorAll("body *")].filter((e) =>
      !e.closest(".scroll") && e.getBoundingClientRect().right > width + 1);
    return {{
      width: width,
      scrolls: root.scrollWidth,
      out: out.map((e) => e.outerHTML.slice(0, 200)),
      boxes: [...page.querySelectorAll(".scroll")].map(
        (e) => [e.clientWidth, e.scrollWidth]),
      loaded: frame.contentWindow.performance.getEntriesByType("resource")
        .map((e) => e.name.slice(0, 60)),
      broken: [...page.images].filter((i) => !i.naturalWidth).length,
      images: [...page.images].map((e) => [e.clientWidth, e.clientHeight,
        e.naturalWidth / e.naturalHeight]),
      colours: [getComputedStyle(page.body).color,
        getComputedStyle(page.body).backgroundColor],
      type: [...page.querySelectorAll("svg text")].map((e) =>
        e.getBoundingClientRect().height).filter((h) => h > 0),
    }};
  }};
  document.body.dataset.read =
    JSON.stringify([...document.querySelectorAll("iframe")].map(read));
}});
</script>
"""


@pytest.fixture
def look(children, tmp_path):
  """Measures pages in a browser; each page has a path and a width in pixels.

  The browser may get more flags.
  """

  def run(*pages, flags=()):
    frames = "\n".join(
      f'<iframe width="{width}" height="900" style="border: 0"'
      f' srcdoc="{html.escape(page.read_text())}"></iframe>'
      for page, width in pages
    )
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(FRAMES.format(frames=frames))
    done = children.run(
      BROWSER,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--disable-background-networking",
      *flags,
      f"--user-data-dir={tmp_path / 'profile'}",
      "--virtual-time-budget=5000",
      "--dump-dom",
      wrapper.as_uri(),
      check=True,
    )
    found = re.search(r'data-read="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))

  return run


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_phone_shows_the_page_without_a_network(write_run, tmp_path, look):
  def edit(config):
    config["stages"]["halve"]["frozen"]["teacher"] = "teacher"
    config["stages"]["of_a_very_long_name_" + "x" * 60] = {"y" * 80: "z" * 90}

  one, two = write_run("one"), write_run("two" + "o" * 60, edit=edit)
  pages = []
  for name, workdirs in (("a", [one]), ("b", [one, two])):
    out = epath.Path(tmp_path) / f"{name}.html"
    write_report(workdirs, out, lambda line: None)
    # Open the folded parts of the page, to check these too.
    out.write_text(out.read_text().replace("<details>", '<details open="">'))
    pages.append(out)
  seen = look(*((p, w) for p in pages for w in (PHONE, DESK)))
  for page, width in zip(seen, (PHONE, DESK) * 2, strict=True):
    assert page["out"] == []
    # A scroll bar may take up to 20 pixels of the window's width.
    assert width - 20 <= page["scrolls"] <= page["width"] == width
    assert all(name.startswith("data:") for name in page["loaded"])
    assert page["images"]
    assert page["broken"] == 0
    assert min(page["type"]) >= 10
    # Tables and sheets that are too wide scroll inside their own box.
    assert all(inside <= width for inside, _ in page["boxes"])
  assert any(whole > inside for inside, whole in seen[0]["boxes"])


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_small_dark_window_shows_whole_pictures(write_run, tmp_path, look):
  out = epath.Path(tmp_path) / "page.html"
  write_report([write_run()], out, lambda line: None)
  # Blink's number of the dark colour scheme is 0.
  dark = "--blink-settings=preferredColorScheme=0"
  (page,) = look((out, SMALL), flags=(dark,))
  assert page["out"] == []
  assert page["scrolls"] <= SMALL
  for width, height, ratio in page["images"]:
    # The wide sheet is shown whole, and no picture is distorted.
    assert 0 < width <= SMALL
    assert width / height == pytest.approx(ratio, rel=0.05)
  ink, ground = (
    sum(int(part) for part in re.findall(r"\d+", colour)[:3])
    for colour in page["colours"]
  )
  assert ink > 600
  assert ground < 100
