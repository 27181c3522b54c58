"""One page of a run, or of several: report.html, read without a network."""
