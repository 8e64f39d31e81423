"""`python -m prunelab`: the same program as `prunelab`."""

import sys

from prunelab.cli import main

sys.exit(main())
