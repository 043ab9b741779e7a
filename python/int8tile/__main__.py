"""Runs the command line as `python -m int8tile`."""

from int8tile.cli import main

if __name__ == "__main__":
    main()
