"""Names of the joints that carry the pose and the gaze."""

HEAD = "head"
EYES = ("eye_left", "eye_right")
