"""`python -m aftercall.cli`: the same as `aftercall`, where no console script is installed."""

from aftercall.cli import main

if __name__ == "__main__":
    main()
