"""`python -m prunelab`: the same program as `prunelab`."""

import sys

from prunelab.cli.main import main

sys.exit(main())
