"""`python -m tests.sim --seeds 10000 --jobs 2`: a campaign of simulated runs."""

import sys

from tests.sim.campaign import main

if __name__ == "__main__":
    sys.exit(main())
