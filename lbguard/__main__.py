"""`python -m lbguard` is `lbguard`."""

from lbguard.cli.main import main

if __name__ == "__main__":
    main()
