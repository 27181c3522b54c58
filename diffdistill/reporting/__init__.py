"""Reports: one self-contained page, report.html, about one run or several."""
