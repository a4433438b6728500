"""The texture that an exported head wears."""

from __future__ import annotations

from typing import Optional

from thnerf.export.scene import Scene


def scene_texture(scene: Scene) -> Optional[bytes]:
    """PNG of the subject's texture, made of the footage when it is not there yet; None where no subject is known or its model has changed."""
    if scene.subject is None:
        return None
    from thnerf.texture import subject_texture

    return subject_texture(scene.subject, scene.albedo).read_bytes()
