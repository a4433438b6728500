"""The talking head: hash-encoded field, torso, speech to motion, training, synthesis, metrics, export.

Submodules are imported by name so that ``import thnerf`` stays cheap; ``thnerf.cli`` is the command line.
"""

__version__ = "0.1.0"
