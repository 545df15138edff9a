"""The command of the original guide: `python main.py --config FILE` is `fed-a2v train --config FILE`."""

import sys

try:
    from fed_a2v.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"main.py: {error}; run `make install`, then `. .venv/bin/activate`, and try again")

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
