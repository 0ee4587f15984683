"""Entry point of `hpcserve` and `python -m hpcserve`."""

from hpcserve.cli.app import main

if __name__ == "__main__":
    main()
