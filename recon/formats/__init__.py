"""Face models in the files of other projects: FLAME, Basel (2009, 2017, 2019), ICT-FaceKit, GNM.

None of them is shipped. Each loader returns a `MorphableModel` in mm, y up, z out of the face, +x to the subject's left, with
landmarks for both detectors. docs/models.md says where to get each and which files belong together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from recon.model import MorphableModel, check_model
from render.files import InputError

KINDS = "FLAME .pkl, BFM 2009 .mat or AD-NeRF's 3DMM_info.npy, BFM 2017/2019 .h5, the ICT-FaceKit folder, or GNM .npz"
_IN_FOLDERS = ("generic_neutral_mesh.obj", "FaceXModel/generic_neutral_mesh.obj", "3DMM_info.npy", "BFM_model_front.mat", "01_MorphableModel.mat",
               "gnm_head.npz", "generic_model.pkl", "flame2023.pkl")


def load_foreign(path: str | Path, landmarks: Path | None = None) -> MorphableModel:
    """Read a model of another project. landmarks: a landmark file instead of those found beside the model.

    Raises InputError when the file is missing, damaged, hostile, of an unknown kind, or lacks a companion, which is then named.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"the face model {path} does not exist; give 'default' or the path of a model file")
    source = _inside(path)
    loader = _loader(source)
    try:
        model = loader(source, landmarks)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{source} claims to be larger than this machine's memory; it is damaged, get it again") from None
    except Exception as error:  # what a damaged file of any of these formats makes numpy, scipy, h5py and json raise
        raise InputError(f"{source} is not a readable face model ({type(error).__name__}: {str(error)[:120]}); get it again, or give another file") from None
    check_model(model, source)
    return model


def _inside(path: Path) -> Path:
    """The model file of a folder; a file is its own."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise InputError(f"the folder {path} holds no face model that is known by its name; give a file: {KINDS}")


def _loader(source: Path) -> Callable[[Path, Path | None], MorphableModel]:
    """Which loader a file needs, by its name."""
    suffix = source.suffix.lower()
    if suffix == ".pkl":
        from recon.formats.flame import load_flame

        return load_flame
    if suffix in (".h5", ".hdf5"):
        from recon.formats.bfm import load_bfm_h5

        return load_bfm_h5
    if suffix in (".mat", ".npy"):
        from recon.formats.bfm import load_ad_nerf, load_bfm09, load_deep3d

        return load_ad_nerf if suffix == ".npy" else load_bfm09 if "MorphableModel" in source.name else load_deep3d
    if suffix == ".obj":
        from recon.formats.ict import load_ict

        return load_ict
    if suffix == ".npz":
        from recon.formats.gnm import load_gnm

        return load_gnm
    raise InputError(f"{source} is not a face model of a known kind; give 'default', a file written by thnerf model convert, {KINDS}")
