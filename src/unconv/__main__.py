"""``python -m unconv``, which is what ``torchrun -m unconv`` starts."""

import sys

from unconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
