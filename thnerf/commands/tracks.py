"""Tracks and heads for other programs, and back: export, import, mesh, retarget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from tyro.conf import Positional, arg

from render.files import check_place
from thnerf.commands.common import Common, Directed, RunChoice, Shared, SharedRun
from thnerf.direction import Direction
from thnerf.export.formats import FORMATS
from thnerf.export.options import ExportOptions

FormatName = Literal[tuple(FORMATS)]  # type: ignore[valid-type]


def export(
    to: FormatName,
    out: Annotated[Path, arg(aliases=["-o"])],
    source: Positional[Optional[Path]] = None,
    audio: Optional[Path] = None,
    model: Optional[Path] = None,
    direction: Directed = Direction(),
    options: Annotated[ExportOptions, arg(name="")] = ExportOptions(),
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Write head, expressions and pose for another program; docs/dcc.md says what each format carries.

    Example: thnerf export subjects/me --to livelink -o me.csv

    Args:
        to: The format.
        out: The file to write.
        source: A subject folder or a Track .npz; left out, the default head speaks --audio.
        audio: Export the motion predicted for this sound instead of the fitted track (needs a trained subject, or no source).
        model: File of the face model of a bare Track that is not of the default one; formats with a mesh need it.
    """
    from thnerf.export import check_export, export_scene, make_scene

    check_export(out, to, options)
    check_place(out)
    scene = make_scene(source, options, audio=audio, model=model, run=shared.run, direction=direction)
    export_scene(scene, out, to, options)
    return {"file": str(out), "format": to, "frames": len(scene.track), "fps": scene.track.fps}


def import_motion(
    file: Positional[Path],
    subject: Path,
    out: Annotated[Path, arg(aliases=["-o"])],
    format: Optional[FormatName] = None,
    base: Optional[Path] = None,
    options: Annotated[ExportOptions, arg(name="")] = ExportOptions(),
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Make a Track of a subject from what another program wrote; thnerf render --track plays it.

    The options say how the file was written, as for export; --fps the frame rate of a file that carries none (others are resampled to it). What the
    file lacks comes from the subject: neutral expressions, torso, camera, translation.

    Example: thnerf import edited.csv --subject subjects/me --fps 25 -o edited.npz

    Args:
        file: A file of a two-way format.
        subject: The subject folder that is to move.
        out: The Track .npz to write.
        format: What the file is; its ending and first words say it by default.
        base: The Track .npz that the file was made from; what the file lacks is then taken from there, frame by frame.
    """
    from recon.subject import Subject
    from thnerf.export.importer import import_file

    check_place(out)
    return import_file(file, Subject.open(subject), out, options, format, base)


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

    check_place(out)
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

    check_place(out)
    return retarget_file(track, model, out, source, smoothing)
