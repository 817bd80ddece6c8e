"""``python -m mmfa``: look at datasets, prepare them, train once and evaluate, without Ray."""

import sys

from mmfa.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
