"""Command line for people who have not installed the package."""

from dam_lightning.cli import main

if __name__ == "__main__":
    main()
