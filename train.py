"""Train a subject: the same as `thnerf train SUBJECT …`."""

import sys

from thnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
