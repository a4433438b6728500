"""Faces: morphable models, landmarks, mattes, fitting, :class:`recon.track.Track`, the subject folder.

Model space is in mm, y up, z out of the face, +x to the subject's left. World space is the
OpenCV camera of the footage. Submodules are imported by name so that ``import recon`` stays cheap.
"""
