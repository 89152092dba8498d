"""`python -m clipkit`, the form that torchrun launches."""

import sys

from clipkit.cli import main

sys.exit(main())
