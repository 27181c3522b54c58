"""python -m diffdistill: the command line."""

import sys

from diffdistill.cli import main

sys.exit(main())
