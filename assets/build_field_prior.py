"""Train a prior field: what several heads have in common, from which `thnerf train --init` begins.

    thnerf phantom --identity 3 --text "…" -o phantoms/3 && thnerf fit phantoms/3/video.mp4 --out subjects/p3
    thnerf fit clip.mpg --out subjects/g1
    python assets/build_field_prior.py subjects/p3 subjects/g1 … -o prior.safetensors
    thnerf train subjects/me --init prior.safetensors

Any fitted subjects of one face model will do. A prior made of phantoms and of GRID's speakers (Cooke et al. 2006, CC BY 4.0) may be passed on with
that attribution; one made of other footage only as its licence and the people in it allow: it holds traces of their faces.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from recon.subject import Subject
from render.files import InputError
from thnerf.config import TrainConfig
from thnerf.prior import train_prior


def main() -> int:
    """Parse the command line and train; 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="+", type=Path, help="folders that thnerf fit made, all of one face model")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors to write")
    parser.add_argument("--rounds", type=int, default=12, help="times that every subject has its turn")
    parser.add_argument("--steps", type=int, default=25, help="steps of a turn")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        train_prior([Subject.open(path) for path in given.subjects], dataclasses.replace(TrainConfig(), seed=given.seed), given.rounds, given.steps, given.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
