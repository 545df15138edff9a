"""`python -m fed_a2v` is `fed-a2v`."""

from fed_a2v.cli import main

if __name__ == "__main__":
    main()
