"""`python -m scoreline` and `torchrun -m scoreline`."""

import sys

from scoreline.cli import main

sys.exit(main())
