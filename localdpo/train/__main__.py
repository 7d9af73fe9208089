"""`python -m localdpo.train RUN_DIR`: the worker process of a run."""

import sys

from localdpo.out import guard
from localdpo.train.worker import main

if __name__ == "__main__":
    guard()
    sys.exit(main(sys.argv[1:]))
