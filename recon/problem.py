"""What all stages of a fit share: landmarks and what they weigh, the model where the detector sees it, and what is expected of expressions.

Residuals count in hundredths of the face's interocular distance, so priors hold at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Sequence

import numpy as np

from recon import landmarks as lm
from recon.config import FitConfig
from recon.model import MorphableModel
from recon.quadratic import ExpressionSystem
from recon.response import turned
from render.files import InputError

ROBUST = 6.0  # px of the robust kernel, in hundredths of the interocular distance
STRONG, WEAK = 10.0, 14.0  # expression priors: weight of a coefficient of 1 against landmarks in hundredths of iod
FULL = 600.0  # summed landmark weights that the priors above are balanced with (MediaPipe's 478 points)
LASSO = 0.5  # share of the prior that is linear and so keeps what is not needed at zero
UNSEEN = ("cheekPuff", "tongueOut")  # hardly move any landmark
DOUBTFUL = ("browInnerUp", "mouthDimple", "mouthPress", "cheekSquint", "noseSneer", "jawForward", "mouthShrug", "mouthRoll", "mouthFunnel",
            "mouthLeft", "mouthRight")
AGAINST = (("jawLeft", "jawRight"), ("mouthLeft", "mouthRight"), ("mouthSmileLeft", "mouthFrownLeft"), ("mouthSmileRight", "mouthFrownRight"),
           ("eyeBlinkLeft", "eyeWideLeft"), ("eyeBlinkRight", "eyeWideRight"), ("browDownLeft", "browOuterUpLeft"),
           ("browDownRight", "browOuterUpRight"), ("mouthPucker", "mouthStretchLeft"), ("mouthPucker", "mouthStretchRight"))
RIVALS = ("eyeWide", "eyeSquint", "mouthLowerDown", "mouthUpperUp", "mouthShrugLower", "mouthClose", "jawLeft", "jawRight")  # would share what eyeBlink and jawOpen do
ALIKE = ("mouthSmile", "mouthFrown", "mouthStretch", "mouthDimple", "mouthPress", "mouthUpperUp", "mouthLowerDown", "cheekSquint", "noseSneer")
SYMMETRY = 10.0  # weight of a difference of 1 between left and right of these, against the prior: in a head that turns away one side is hidden
LEADERS = ("jawOpen", "eyeBlink")  # explain first


@dataclass
class Problem:
    """What all stages share. Pictures are px about the principal point, heads are landmark parts of the model where the detector sees them."""

    picture: np.ndarray  # (T,N,2)
    valid: np.ndarray
    head: np.ndarray  # (N,3) mean landmarks
    shapes: np.ndarray  # (S,N,3)
    expressions: np.ndarray  # (E,N,3)
    names: tuple[str, ...]
    turn: np.ndarray  # (2,N,3) mm per rad of yaw and pitch: the detector's response to pose
    base: np.ndarray  # (N,) landmark weights
    stable: np.ndarray  # (N,) weights for pose
    corrected: np.ndarray  # (N,) 1 where a landmark gets a constant correction
    unit: float  # px of one hundredth of the interocular distance
    width: int
    height: int
    system: ExpressionSystem
    certainty: np.ndarray  # (T,N) that the weights are multiplied by, 0 to 1
    lower: np.ndarray = field(init=False)
    upper: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        units = "jawOpen" in self.names  # blend-shape weights; other models' components are signed
        self.lower = np.full(len(self.names), 0.0 if units else -3.0, np.float32)
        self.upper = np.full(len(self.names), 1.0 if units else 3.0, np.float32)
        for i, name in enumerate(self.names):
            if units and name == "tongueOut":
                self.upper[i] = 0

    def place(self, head: np.ndarray, e: np.ndarray, R: np.ndarray) -> np.ndarray:
        """Landmarks (T,N,3) mm of head (N,3) with expressions e (T,E), as the detector sees them under rotations R (T,3,3)."""
        return head + np.tensordot(e, self.expressions, 1) + turned(self.turn, R)


@dataclass(frozen=True)
class Identity:
    """The constant part of a solution: shape (S,), head (N,3) landmarks with corrections, offsets (N,3) mm, focal px."""

    shape: np.ndarray
    head: np.ndarray
    offsets: np.ndarray
    focal: float


def make_problem(points: np.ndarray, valid: np.ndarray, width: int, height: int, model: MorphableModel, config: FitConfig, withheld: Sequence[int] = (),
                 certainty: np.ndarray | None = None) -> Problem:
    """Landmark part of the model and weights of the landmarks, 0 for those withheld; certainty (T,N): of each in each frame, 0 to 1."""
    scheme = lm.SCHEMES[points.shape[1]]
    if scheme not in model.landmarks:
        raise InputError(f"face model {model.model_id} has no {scheme} landmarks; use a detector it knows ({', '.join(model.landmarks)})")
    pick = lambda arrays: np.asarray(model.points(arrays, scheme), np.float64)  # noqa: E731 - points() is linear, so it maps bases too
    mean, expressions = pick(model.mean), pick(model.expression_basis)
    S = min(config.shape_components, len(model.shape_basis))
    shapes = pick(model.shape_basis[:S]) if S else np.zeros((0,) + expressions.shape[1:])
    turn, response = np.zeros((2,) + mean.shape), model.landmarks[scheme].response
    if response is not None:
        mean, expressions, turn = mean + response.offset, expressions + response.expression, response.angles.astype(np.float64)
        shapes[: len(response.shape)] += response.shape[:S]
    base = np.ones(points.shape[1])
    if points.shape[1] == 478:
        base[468:] = 0  # irises: gaze
        base[list(lm.FACE_OVAL)] = 0.2  # the outline slides over the head as it turns
        base[list(lm.OUTER_LIP)], base[list(lm.INNER_LIP)] = 3, 8
        base[[*lm.LIDS["left"], *lm.LIDS["right"]]] = 3
    else:
        base[:17], base[36:60], base[60:] = 0.2, 2, 3
    base[list(withheld)] = 0
    mobility = np.linalg.norm(expressions, axis=-1).sum(0)
    stable = np.where(base > 1, 1, base) / (1 + (mobility / np.median(mobility)) ** 2)
    usable = np.where(valid[:, None, None], points, 0.0).astype(np.float64) - np.array([width / 2, height / 2])
    problem = Problem(usable, valid, mean, shapes, expressions, model.expression_names, turn, base, stable, np.ones(len(base)),
                      unit=float(np.median(lm.interocular(points[valid]))) / 100, width=width, height=height, system=ExpressionSystem(expressions),
                      certainty=np.ones(points.shape[:2]) if certainty is None else certainty)
    problem.corrected[list(withheld)] = 0
    if model.bounds is not None:
        problem.lower, problem.upper = model.bounds.T.astype(np.float32)
    return problem


def keyframes(problem: Problem, count: int) -> np.ndarray:
    """Frames spread over time and over what the face does (farthest points in landmark space), sorted."""
    good = np.flatnonzero(problem.valid)
    if len(good) <= count:
        return good
    chosen = list(good[np.linspace(0, len(good) - 1, max(1, count // 2)).astype(int)])
    pool = good[np.linspace(0, len(good) - 1, min(len(good), 1500)).astype(int)]
    feature = (problem.picture[pool] - problem.picture[pool].mean(1, keepdims=True)).reshape(len(pool), -1)
    anchors = problem.picture[chosen]
    anchors = (anchors - anchors.mean(1, keepdims=True)).reshape(len(chosen), -1)
    distance = np.min([((feature - a) ** 2).sum(1) for a in anchors], axis=0)
    while len(chosen) < count:
        best = int(distance.argmax())
        chosen.append(pool[best])
        distance = np.minimum(distance, ((feature - feature[best]) ** 2).sum(1))
    return np.unique(chosen)


def expression_prior(problem: Problem, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Quadratic (E,E) and linear (E,) part of the expression prior; few landmarks are given a weaker one."""
    return prior(problem.names, strength * min(1.0, float(problem.base.sum()) / FULL), bool(problem.lower[0] == 0))


@lru_cache(maxsize=16)
def prior(names: tuple[str, ...], strength: float, weights: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same for expressions of these names; weights: they are none or positive. Live tracking asks several times a frame."""
    scale = np.ones(len(names))
    for i, name in enumerate(names):
        scale[i] = 20 if name.startswith(UNSEEN) else 3 if name.startswith(DOUBTFUL) else 6 if name.startswith(RIVALS) else 0.1 if name.startswith(LEADERS) else 1
    quadratic = np.diag(strength * scale)
    for a, b in AGAINST:
        if a in names and b in names:
            i, j = names.index(a), names.index(b)
            quadratic[i, j] = quadratic[j, i] = 0.9 * strength
    for name in ALIKE:
        if name + "Left" in names and name + "Right" in names:
            pair = np.ix_(*2 * ([names.index(name + side) for side in ("Left", "Right")],))
            quadratic[pair] += SYMMETRY * strength * np.array([[1, -1], [-1, 1]])
    linear = LASSO * strength * scale if weights else 0 * scale
    both = quadratic.astype(np.float32), linear.astype(np.float32)
    for part in both:  # shared by all callers
        part.setflags(write=False)
    return both


def jaw_pair(names: tuple[str, ...]) -> tuple[int, int] | None:
    """Columns of mouthClose and jawOpen, where the model has both."""
    return (names.index("mouthClose"), names.index("jawOpen")) if {"mouthClose", "jawOpen"} <= set(names) else None


