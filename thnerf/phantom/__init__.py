"""The phantom: a synthetic talking person with an exact Track, for people and tests without footage.

speech (text → sound and phoneme times) → motion (phonemes → Track) → appearance and scene (Track → video).
"""

from __future__ import annotations

from typing import Any

_FROM_SCENE = ("make_phantom", "render_phantom", "phantom_frames")


def __getattr__(name: str) -> Any:
    """The entry points, imported when first used so that the package stays cheap to import."""
    if name in _FROM_SCENE:
        from thnerf.phantom import scene

        return getattr(scene, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
