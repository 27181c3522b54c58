"""The colours, dashes and markers of charts.

Any two colours differ clearly also for readers with deuteranopia, protanopia or
tritanopia: tests/evaluation/palette_test.py simulates these. A curve also has a
marker, so no reader depends on colours.
"""

# The colours of students' curves on a white page: navy, amber, green, pink,
# brown and blue.
COLOURS = ("#214294", "#c27e0b", "#7b9462", "#ea51a4", "#734c00", "#0e8df3")
# A teacher's curve has the colour of text.
TEXT, MUTED, GRID = "#1c1e21", "#5c6066", "#dcdcd6"
# In an SVG, each colour is a CSS variable of the page, with a dark variant.
VARIABLES = {
  **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)},
  **{TEXT: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"},
}
# A line of matplotlib: solid, dashes, dots, or dashes and dots.
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (8, 2, 2, 2)))
MARKERS = "osDv^PX*"
