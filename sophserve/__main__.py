"""`python -m sophserve` is `sophserve`."""

import sys

from sophserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
