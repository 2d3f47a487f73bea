"""`python -m lbguard` is `lbguard`."""

from lbguard.cli import main

if __name__ == "__main__":
    main()
