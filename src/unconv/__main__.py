"""``python -m unconv``."""

import sys

from unconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
