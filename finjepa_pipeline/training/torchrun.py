"""torchrun without its trace when it is asked to stop: its ranks have saved their state by then."""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    try:
        main()
    except (SignalException, KeyboardInterrupt):
        sys.exit(1)
