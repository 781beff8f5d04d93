"""`python -m darkarc`."""

from darkarc.cli import main

if __name__ == "__main__":
    main()
