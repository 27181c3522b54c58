"""The version of diffdistill, which setup.py and CITATION.cff repeat."""

VERSION = "0.1.0"
