"""Pixels: cameras, rotations, mesh rasteriser, ray marching, compositing, video files.

Nothing here knows about faces or networks. Submodules are imported by name so that
``import render`` stays cheap.

Axes: OpenCV camera (+x right, +y down, +z forward), pixel centres at +0.5.
"""
