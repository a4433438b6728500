"""Maya's .anim file of animation curves, as File > Export Selection writes it with the plug-in animImportExport.

Objects: `head` (translate, rotate), `eye_left`, `eye_right` (rotate), and `head_blendShape` with one attribute per expression, as in the scene that
`--to maya` writes. A key is ``time value in out tangentsLocked weightsLocked breakdown``, after which a fixed tangent has angle and weight;
times are frames of `timeUnit`. All keys are written, linear. Rotations have Maya's default order, xyz.

Curves that an artist left with few keys and splines are sampled at whole frames; what Maya computes for the many kinds of splines is met
only approximately, so bake them before (Edit > Keys > Bake Simulation) where a thousandth matters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.curves import Curve, assemble, frame_range
from thnerf.export.maya_time import MM, SECONDS, rate_of, unit_of
from thnerf.export.names import identifiers
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.space import Space, to_euler
from thnerf.export.text import read_text

UNIT = "cm"
HEAD, BLEND = "head", "head_blendShape"
DEGREES = {"rad": 180 / np.pi, "deg": 1.0, "min": 1 / 60, "sec": 1 / 3600}


def maya_curves(scene: Scene, options: ExportOptions) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """(object, attribute, kind, values (T,)) of everything that moves; kind is 'linear' (in units), 'angular' (degrees) or 'unitless'."""
    space = scene.space(options, UNIT)
    matrix, position = space.head(scene.track.rotation, scene.track.translation)
    angles = to_euler(matrix, "xyz")
    for i, axis in enumerate("XYZ"):
        yield HEAD, f"translate{axis}", "linear", position[:, i]
    for i, axis in enumerate("XYZ"):
        yield HEAD, f"rotate{axis}", "angular", angles[:, i]
    if options.eyes == "rotation":
        turns = space.eyes(scene.gaze(options))
        for side, name in enumerate(("eye_right", "eye_left") if options.sides == "viewer" else ("eye_left", "eye_right")):
            for axis, values in zip("XYZ", to_euler(turns[:, side], "xyz").T):
                yield name, f"rotate{axis}", "angular", values
    for name, values in zip(identifiers(scene.names(options)), scene.track.expression.T):
        yield BLEND, name, "unitless", values.astype(np.float64)


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write an .anim, atomically. Raises InputError for a frame rate that Maya does not have."""
    track, first = scene.track, options.first_frame(scene.track.fps)
    unit = UNIT if options.units == "auto" else options.units
    last = first + len(track) - 1
    times = [str(first + i) for i in range(len(track))]
    counts: dict[str, int] = {}
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.write(f"animVersion 1.1;\nmayaVersion 2018;\ntimeUnit {unit_of(track.fps)};\nlinearUnit {unit};\nangularUnit deg;\nstartTime {first};\nendTime {last};\n")
        for node, attribute, kind, values in maya_curves(scene, options):
            index = counts[node] = counts.get(node, -1) + 1
            parent = f"{attribute[:-1]}." if attribute[:-1] in ("translate", "rotate") else ""
            stream.write(f"anim {parent}{attribute} {attribute} {node} {int(node.startswith('eye'))} 0 {index};\nanimData {{\n  input time;\n  output {kind};\n"
                         "  weighted 0;\n  preInfinity constant;\n  postInfinity constant;\n  keys {\n")
            digits = 6 if kind != "unitless" else 7
            stream.writelines(f"    {t} {v:.{digits}f} linear linear 1 1 0;\n" for t, v in zip(times, (np.round(values, digits) + 0.0).tolist()))
            stream.write("  }\n}\n")


def read(path: Path, options: ExportOptions) -> Imported:
    """Read an .anim of these objects, or of any one object that turns and any others' attributes as weights. Raises InputError."""
    header, curves = parse(read_text(path), str(path))
    fps = rate_of(header["timeUnit"]) if "timeUnit" in header else None
    scale = 1.0
    if fps is None:
        if options.fps is None:
            raise InputError(f"{path} has its keys in {header.get('timeUnit', 'an unknown unit')}; say with --fps how many frames a second are wanted")
        fps = options.fps
        scale = SECONDS.get(header.get("timeUnit", ""), 1 / fps) * fps
    every = {}
    for (node, attribute), entry in curves.items():
        every[f"{node}\n{attribute}"] = _curve(entry, scale, fps)
    start, end = (_number(header[k], str(path)) * scale if k in header else None for k in ("startTime", "endTime"))
    frames = frame_range(every, start, end, str(path))
    millimetres = MM.get(header.get("linearUnit", UNIT), 10.0)
    degrees = DEGREES.get(header.get("angularUnit", "deg"), 1.0)
    nodes: dict[str, dict[str, np.ndarray]] = {}
    weights: dict[str, np.ndarray] = {}
    for (node, attribute), entry in curves.items():
        values = every[f"{node}\n{attribute}"].at(frames)
        match = re.fullmatch(r"(translate|rotate)([XYZ])", attribute)
        if match:
            unit = degrees if match[1] == "rotate" else millimetres
            nodes.setdefault(node, {})[match[1][0] + match[2].lower()] = values * unit
        elif not re.fullmatch(r"scale[XYZ]|visibility", attribute):
            weights.setdefault(attribute, values)
    sparse = sum(1 for c in every.values() if 1 < len(c.times) < len(frames) and any(k not in ("linear", "step") for k in c.kinds))
    notes = [f"{path.name}: {sparse} curves have splines between sparse keys, which are met approximately; bake them in Maya for exact values"] if sparse else []
    return assemble(fps, weights, nodes, Space(1.0, options.up), options, str(path), notes=notes)


def parse(text: str, what: str) -> tuple[dict[str, str], dict[tuple[str, str], dict[str, Any]]]:
    """Header {keyword: value}, and of each curve by (object, attribute) its keys [[word, …], …]. Raises InputError when it is no .anim."""
    if "animVersion" not in text[:4096]:
        raise InputError(f"{what} is no Maya .anim file (it does not begin with animVersion); export it again")
    header: dict[str, str] = {}
    curves: dict[tuple[str, str], dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    depth, in_keys = 0, False
    for piece in re.finditer(r"([^;{}]*)([;{}])", re.sub(r"(//|#)[^\n]*", "", text)):
        words, mark = piece[1].split(), piece[2]
        if mark == "}":
            depth, in_keys = depth - 1, False
            if depth < 0:
                raise InputError(f"{what} closes a brace that was not opened; export it again")
        elif mark == "{":
            depth += 1
            in_keys = words[:1] == ["keys"]
        elif in_keys and current is not None:
            current["keys"].append(words)
        elif words[:1] == ["anim"]:
            current = None
            if len(words) >= 7:  # anim full.path leaf object row child attribute; without a path it only names an object
                current = {"keys": []}
                curves[(words[3], words[2])] = current
        elif depth == 0 and len(words) == 2:
            header[words[0]] = words[1]
        elif current is not None and len(words) == 2:
            current[words[0]] = words[1]
    if depth:
        raise InputError(f"{what} ends in the middle of a curve; export it again")
    return header, {name: entry for name, entry in curves.items() if entry["keys"] and entry.get("input", "time") == "time"}


def _number(word: str, what: str) -> float:
    """A finite number. Raises InputError otherwise."""
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{what} has {word[:40]!r} where a number is expected; export it again") from None
    if not np.isfinite(value):
        raise InputError(f"{what} has a number that is not finite; export it again")
    return value


def _curve(entry: dict[str, Any], scale: float, fps: float) -> Curve:
    """One curve, times in frames. Raises InputError for keys that are none."""
    keys = entry["keys"]
    if any(len(k) < 2 for k in keys):
        raise InputError("a curve has a key without time and value; export it again")
    try:
        times, values = np.array([float(k[0]) for k in keys]) * scale, np.array([float(k[1]) for k in keys])
    except ValueError as error:
        raise InputError(f"a curve has a key that is no number ({str(error)[:80]}); export it again") from None
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        raise InputError("a curve has a key that is not finite; export it again")
    kinds = [k[3] if len(k) > 3 else "linear" for k in keys]
    if all(len(k) <= 7 for k in keys):
        return Curve(times, values, kinds)
    angle = np.pi / 180 * DEGREES.get(entry.get("tangentAngleUnit", "deg"), 1.0)
    slopes = np.full((len(keys), 2), np.nan)
    for row, k in zip(slopes, keys):
        extra = [_number(word, "a tangent") for word in k[7:11]]
        if extra and k[2] == "fixed":
            row[0] = np.tan(np.clip(extra[0] * angle, -1.57, 1.57)) / fps
            extra = extra[2:]
        if extra and k[3] == "fixed":
            row[1] = np.tan(np.clip(extra[0] * angle, -1.57, 1.57)) / fps
    return Curve(times, values, kinds, slopes)
