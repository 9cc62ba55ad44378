"""`python -m fabric.audit.verify`: as the one file does."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
