"""`python -m continuitybridge.cli`: the `bridge` command without its script."""

from continuitybridge.cli import main

if __name__ == "__main__":
    main()
