"""Tracks and heads for other programs: export, mesh, retarget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from tyro.conf import Positional, arg

from thnerf.commands.common import Common, RunChoice, Shared, SharedRun


def export(
    source: Positional[Path],
    to: Literal["livelink", "json", "npz"],
    out: Annotated[Path, arg(aliases=["-o"])],
    audio: Optional[Path] = None,
    seed: int = 0,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Write coefficients and head pose for another program.

    Example: thnerf export subjects/me --to livelink -o me.csv

    Args:
        source: A subject folder or a Track .npz.
        to: livelink (Live Link Face CSV), json, or npz (a Track).
        out: The file to write.
        audio: Export the motion predicted for this sound instead of the fitted track (needs a trained subject).
        seed: Seed of the predicted head motion.
    """
    from thnerf.export import export_track, resolve_track

    track = resolve_track(source, audio=audio, run=shared.run, seed=seed)
    export_track(track, out, to)
    return {"file": str(out), "format": to, "frames": len(track), "fps": track.fps}


def mesh(
    subject: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    source: Literal["field", "fit"] = "field",
    frame: Optional[int] = None,
    cell_mm: float = 1.5,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Write the subject's head as a mesh with vertex colours: .ply and .obj in mm, .glb in metres.

    Example: thnerf mesh subjects/me -o head.glb

    Args:
        subject: A subject folder; for --source field a trained one.
        out: head.ply, head.glb or head.obj.
        source: field (the surface of the trained field, hair included, closed at the back by the face model) or fit (the face model
            itself, with the footage's colours).
        frame: The expression of this frame of the footage instead of the typical one.
        cell_mm: Grain of the field's mesh.
    """
    from recon.subject import Subject
    from thnerf.mesh import export_mesh

    return export_mesh(Subject.open(subject), out, source, run=shared.run, frame=frame, cell_mm=cell_mm)


def retarget(
    track: Positional[Path],
    model: str,
    out: Annotated[Path, arg(aliases=["-o"])],
    source: Optional[str] = None,
    smoothing: float = 0.04,
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Re-express a track in another face model, ARKit weights for example; says how far off the faces are, in mm.

    Example: thnerf retarget track.npz --source flame.npz --model default -o arkit.npz

    Args:
        track: A Track .npz, or a subject folder.
        model: The face model to re-express it in: default, or a model file.
        out: The Track .npz to write.
        source: The face model of the track, where it is neither the default one nor the subject's.
        smoothing: Zero-lag smoothing of the result, as fit's --expression-smoothing; no clip border is crossed.
    """
    from recon.retarget import retarget_file

    return retarget_file(track, model, out, source, smoothing)
