"""Maya's names for frame rates and lengths, which its scene and animation files share."""

from __future__ import annotations

from render.files import InputError

NAMED = {"game": 15.0, "film": 24.0, "pal": 25.0, "ntsc": 30.0, "show": 48.0, "palf": 50.0, "ntscf": 60.0}
BROADCAST = {"23.976fps": 24000 / 1001, "29.97fps": 30000 / 1001, "29.97df": 30000 / 1001, "47.952fps": 48000 / 1001, "59.94fps": 60000 / 1001}
WHOLE = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 40, 75, 80, 90, 100, 120, 125, 150, 200, 240, 250, 300, 375, 400, 500, 600, 750)  # "Nfps"
SECONDS = {"hour": 3600.0, "min": 60.0, "sec": 1.0, "millisec": 0.001}
MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1000.0, "meter": 1000.0, "km": 1e6, "kilometer": 1e6, "in": 25.4, "inch": 25.4,
      "ft": 304.8, "foot": 304.8, "yd": 914.4, "yard": 914.4, "mi": 1609344.0, "mile": 1609344.0}


def unit_of(fps: float) -> str:
    """The name of a frame rate. Raises InputError where Maya has none."""
    known = {**NAMED, **BROADCAST, **{f"{n}fps": float(n) for n in WHOLE}}
    for name, rate in known.items():
        if abs(rate - fps) < 2e-3:
            return name
    near = min(known.values(), key=lambda rate: abs(rate - fps))
    raise InputError(f"Maya has no time unit of {fps:g} frames a second; resample with --fps {near:g}")


def rate_of(name: str) -> float | None:
    """Frames per second of a name; None for hours to milliseconds, whose keys have no frames. Raises InputError for an unknown one."""
    name = name.strip().strip('"').lower()
    if name in SECONDS:
        return None
    rate = {**NAMED, **BROADCAST}.get(name)
    if rate is None and name.endswith("fps"):
        try:
            rate = float(name[:-3])
        except ValueError:
            rate = None
    if rate is None or not 1 <= rate <= 1000:
        raise InputError(f"{name!r} is no time unit of Maya that is known here; set the scene to a rate in frames per second")
    return rate
