"""Speech to motion, asked against measured: lips that other voices drive, silence, held-out footage, time, head motion, speed, what the prior changes.

Run: python tests/benchmarks/bm_motion.py --subjects FOLDER            (all parts)
     python tests/benchmarks/bm_motion.py --subjects FOLDER --parts speed closures

FOLDER keeps the subjects grid (60 clips of GRID s1, 54 to train and 6 held out), macron, obama and demo, as `thnerf fit` and `thnerf train` make them; what is not
there is made (an hour). Footage comes from THNERF_FOOTAGE or ../shared/data. Prints a table and writes results/bm_motion.json; parts that were not run keep their
figures there.

The lip gap is that of the Track's mesh, in mm; closed is below 15 % of its 95th percentile in the clip. Rendered figures are those of `thnerf evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait

import numpy as np  # noqa: E402
from bench import RESULTS, Row, footage, least, machine, most, table  # noqa: E402

from recon.assets import asset  # noqa: E402
from recon.config import FitConfig  # noqa: E402
from recon.fit import fit_subject  # noqa: E402
from recon.model import MorphableModel, load_model  # noqa: E402
from recon.subject import Subject  # noqa: E402
from recon.track import Track, concatenate  # noqa: E402
from render.files import write_json  # noqa: E402
from thnerf import audio, encoders  # noqa: E402
from thnerf.alignment import BILABIALS, SILENCE, forced_alignment  # noqa: E402
from thnerf.bilabials import bilabial_probability  # noqa: E402
from thnerf.config import MotionConfig, TrainConfig  # noqa: E402
from thnerf.encoders import load_encoder  # noqa: E402
from thnerf.evaluate import evaluate, held_out, speech_predictor, spoken_track, stretch_sound  # noqa: E402
from thnerf.metrics import best_lag, pearson  # noqa: E402
from thnerf.motion import FILE, Speaker, predict_track  # noqa: E402
from thnerf.motion_training import train_motion  # noqa: E402
from thnerf.phantom.motion import phantom_track  # noqa: E402
from thnerf.phantom.scene import utterance  # noqa: E402
from thnerf.stream import Streamer  # noqa: E402
from thnerf_assets.build_demo import VOICE  # noqa: E402
from thnerf_assets.build_speech_prior import GRID  # noqa: E402

HELD = 6  # clips of GRID s1 held out
UNHURRIED = 1e6  # s: steps end the training of speech networks, not time, which differs with the machine
EDGE = 0.2  # s at either end of a silence in which the lips may still move
TEXTS = {
    "wav/jfk.wav": "and so my fellow americans ask not what your country can do for you ask what you can do for your country",
    "obama/obama.mp4": "you about the battle we're waging against an oil spill that is assaulting our shores and our citizens on april twentieth an explosion "
                       "ripped through b p deepwater horizon drilling rig about forty miles off the coast of louisiana eleven workers lost their lives seventeen others",
    # as pocketsphinx hears them with its language model, since transcripts are not at hand: some words are wrong, and `thnerf.bilabials` hears with that model, too
    "wav/Claire_neutral.wav": "she usually has to push the garage door closed two our tickets at the church watching on magic shell "
                              "we well as with lucy about a cop car in her new media will car",
    "wav/Mark_joy.wav": "with ten year suzy have all the more leisure free diving but for publications are no good",
}
SURE = tuple(TEXTS)[:2]
MANDARIN = "wav/Claire_joy_mandarin.wav"
SENTENCES = ("Maybe the boys will bring a bigger map before we climb the mountain.", "Nobody moved until the old piano began to play a simple melody.",
             "Five people were waiting by the bus, but only two of them had umbrellas.", "Please put both of these heavy boxes beside the open window.")


class Bench:
    """The subjects and the footage."""

    def __init__(self, folder: Path, data: Path, folds: int) -> None:
        self.folder, self.data, self.folds = folder, data, folds

    def subject(self, name: str, field: bool = False) -> tuple[Subject, Path]:
        """A subject and its run; fitted and trained first where it is not there. field: with a picture, which takes ten minutes."""
        folder = self.folder / name
        if not (folder / "subject.json").exists():
            sources = {"grid": sorted((self.data / "grid_s1/mpg").glob("*.mpg")), "demo": [asset("demo/video.mp4")]}.get(name, [self.data / name / f"{name}.mp4"])
            fit_subject(sources, folder, FitConfig())
            if name == "grid":
                subject = Subject.open(folder)
                clips = [[int(c.start), int(c.stop)] for c in subject.track.clips]
                write_json(subject.json_path, {**subject.info, "split": {"train": clips[:-HELD], "test": clips[-HELD:]}})
        subject = Subject.open(folder)
        run = subject.run()
        if not (run / FILE).exists():
            run.mkdir(parents=True, exist_ok=True)
            train_motion(subject, run, None, UNHURRIED)
        if field and not (run / "field.safetensors").exists():
            from thnerf.trainer import train

            train(subject, TrainConfig())
        return subject, run

    def sound(self, name: str) -> np.ndarray:
        """A clip's samples at audio.RATE."""
        return audio.load_audio(self.data / name)


def lip_gap(track: Track, model: MorphableModel) -> tuple[np.ndarray, float]:
    """Inner-lip gap (T,) mm of the Track's mesh, and that of its neutral face."""
    height = lambda vertices: model.points(vertices, "mediapipe478")[..., [13, 14], 1]  # noqa: E731
    own = height(model.vertices(track.shape, np.zeros(len(model.expression_names))))
    lips = own + np.tensordot(track.expression, height(model.expression_basis), 1)
    return lips[:, 0] - lips[:, 1], float(own[0] - own[1])


def shut(gap: np.ndarray) -> np.ndarray:
    """Frames (T,) bool that are closed."""
    return gap < 0.15 * np.percentile(gap, 95)


def closures(gap: np.ndarray, phones: list[tuple[str, float, float]], fps: float) -> np.ndarray:
    """Bilabials that are closed within ±2 frames, bilabials, other speech frames that are closed, other speech frames."""
    closed, near, speech = shut(gap), np.zeros(len(gap), bool), np.zeros(len(gap), bool)
    met = count = 0
    for phone, a, b in phones:
        first, last = int(a * fps), int(np.ceil(b * fps - 1e-9))
        speech[first:last] |= phone != SILENCE
        if phone in BILABIALS and first < len(gap):
            window = slice(max(0, first - 2), last + 2)
            near[window] = True
            met, count = met + closed[window].any(), count + 1
    other = speech & ~near
    return np.array([met, count, (closed & other).sum(), other.sum()])


def told(found: np.ndarray) -> str:
    return f"{found[0]:.0f} of {found[1]:.0f}; {found[2]:.0f} of {found[3]:.0f} other frames"


def closing(b: Bench) -> list[Row]:
    """Bilabials of voices that drive the GRID speaker, of his own held-out sentences, and of his real footage."""
    subject, run = b.subject("grid")
    counts: dict[str, np.ndarray] = {}
    rows = []
    for name, text in TEXTS.items():
        samples = b.sound(name)
        track = predict_track(subject, run, samples)
        counts[name] = found = closures(lip_gap(track, subject.model)[0], forced_alignment(samples, text), track.fps)
        note = told(found) + ("" if name in SURE else "; transcript by a recogniser")
        rows += [Row(f"closed bilabials, {Path(name).stem}", "", found[0] / found[1], None, note), Row(f"other speech frames closed, {Path(name).stem}", "", found[2] / found[3], None)]
    total, sure = sum(counts.values()), sum(counts[name] for name in SURE)
    rows = [least("closed bilabials, all English voices", 0.85, total[0] / total[1], f"{told(total)}; where the transcript is certain {told(sure)}"),
            most("other speech frames closed, all English voices", 0.10, total[2] / total[3])] + rows
    samples = b.sound(MANDARIN)
    track = predict_track(subject, run, samples)
    speech = audio.hear(samples, track.fps, len(track)).pause < 0.5
    rows.append(most("speech frames closed, Mandarin", 0.10, shut(lip_gap(track, subject.model)[0])[speech].mean(), f"{speech.sum()} frames that are no pause, its bilabials among them"))
    real, made = np.zeros(4), np.zeros(4)
    clips, spoken = subject.track.clips, spoken_gap(subject, run)[1]
    sound = audio.load_audio(subject.audio_path)
    gap, test = lip_gap(subject.track, subject.model)[0], [a for a, _ in subject.info["split"]["test"]]
    for clip, info in zip(clips, subject.info["clips"]):
        text = " ".join(words.get(letter, letter) for words, letter in zip(GRID, Path(info["source"]).stem[-6:]))
        second = audio.RATE / subject.track.fps
        phones = forced_alignment(sound[round(clip.start * second) : round(clip.stop * second)], text)
        real += closures(gap[clip], phones, subject.track.fps)
        if clip.start in test:
            made += closures(spoken[test.index(clip.start)], phones, subject.track.fps)
    return rows + [Row("closed bilabials, real footage of the driven speaker", "", real[0] / real[1], None, told(real)),
                   Row("other speech frames closed, real footage", "", real[2] / real[3], None),
                   Row("closed bilabials, his held-out sentences", "", made[0] / made[1], None, told(made)), Row("other speech frames closed, his held-out sentences", "", made[2] / made[3], None)]


def spoken_gap(subject: Subject, run: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lip gaps of the held-out stretches, fitted and predicted from their sound."""
    ranges = held_out(subject)
    tested = concatenate([subject.track[a:b] for a, b in ranges])
    starts = np.cumsum([0] + [b - a for a, b in ranges[:-1]])
    made = spoken_track(tested, starts, stretch_sound(subject, ranges), speech_predictor(subject, run)[0])
    cut = lambda track: np.split(lip_gap(track, subject.model)[0], starts[1:])  # noqa: E731
    return cut(tested), cut(made)


def distance(lag: int | None) -> float:
    """Frames off; infinite where the mouths never go along with each other."""
    return np.inf if lag is None else abs(lag)


def silence(b: Bench) -> list[Row]:
    """The lips in silences that are put into speech, in pauses of the speech itself, and in sounds that are no speech."""
    subject, run = b.subject("grid")
    model, fps, worst, opened, rows = subject.model, subject.track.fps, {0.5: {}, 1.5: {}}, [], []
    pauses: dict[str, float] = {}
    for name, text in TEXTS.items():
        samples = b.sound(name)
        half = len(samples) // 2
        gap, neutral = lip_gap(predict_track(subject, run, samples), model)
        phones = forced_alignment(samples, text)
        speaking = np.any([(np.arange(len(gap)) >= s * fps) & (np.arange(len(gap)) < e * fps) for p, s, e in phones if p != SILENCE], 0)
        median = np.median(gap[speaking]) - neutral
        opened.append(median)
        for seconds, found in worst.items():
            track = predict_track(subject, run, np.concatenate([samples[:half], np.zeros(round(seconds * audio.RATE), np.float32), samples[half:]]))
            rest = slice(int(np.ceil((half / audio.RATE + EDGE) * fps)), int((half / audio.RATE + seconds - EDGE) * fps) + 1)
            found[name] = max(0.0, lip_gap(track, model)[0][rest].max() - neutral) / median
        for phone, start, end in phones[1:-1] if name in SURE else ():  # between words: the recording may go on after its text
            if phone == SILENCE and end - start >= 0.5:
                rest = slice(int(np.ceil((start + EDGE) * fps)), int((end - EDGE) * fps) + 1)
                pauses[f"{Path(name).stem} at {start:.1f} s"] = max(0.0, gap[rest].max() - neutral) / median
    say = lambda found: ", ".join(f"{k.split('/')[-1].removesuffix('.wav').removesuffix('.mp4')} {v:.2f}" for k, v in found.items())  # noqa: E731
    for seconds, found in worst.items():
        rows.append(most(f"silence of {seconds} s: widest lip gap above neutral, of the speech median", 0.10, max(found.values()), say(found)))
    rows.append(most("pauses >= 0.5 s in the voices themselves, likewise", 0.10, max(pauses.values()), say(pauses)))
    moved = {name: max(0.0, lip_gap(predict_track(subject, run, sound), model)[0].max() - neutral) / np.median(opened) for name, sound in noises().items()}
    return [*rows, Row("noise and music, likewise", "", max(moved.values()), None, say(moved))]


def noises(seconds: float = 6.0) -> dict[str, np.ndarray]:
    """Sounds in which nobody speaks, (n,) float32 at audio.RATE each."""
    rng, n = np.random.default_rng(0), round(seconds * audio.RATE)
    at, beat = np.arange(n) / audio.RATE, np.arange(n) % (audio.RATE // 2) / audio.RATE
    chord = lambda parts: sum(np.sin(2 * np.pi * f * k * at) / k for f in (220, 277, 330) for k in range(1, parts + 1)) * np.exp(-4 * beat)  # noqa: E731
    found = {"noise": rng.normal(size=n), "sines": chord(1), "saws": chord(11), "drums": rng.normal(size=n) * np.exp(-40 * beat)}
    return {name: (0.1 * x / x.std()).astype(np.float32) for name, x in found.items()}


def held(b: Bench) -> list[Row]:
    """Held-out footage: rendered from its sound, and the Track's mesh beside it."""
    rows = []
    for name, asked in {"grid": 0.85, "macron": 0.7, "obama": None}.items():
        subject, run = b.subject(name, field=True)
        result = evaluate(subject)
        audio_row, chance = result["audio"], result["shuffled"]
        real, made = spoken_gap(subject, run)
        starts, real, made = np.cumsum([0] + [len(x) for x in real[:-1]]), np.concatenate(real), np.concatenate(made)
        correlation, note = audio_row["mouth_correlation"], f"{result['frames']} frames; chance {chance['mouth_correlation']:.2f}; of the mesh {pearson(real, made):.3f}"
        rows += [Row(f"{name}: mouth-opening correlation, held out, rendered", "", correlation, None, note) if asked is None else
                 least(f"{name}: mouth-opening correlation, held out, rendered", asked, correlation, note),
                 most(f"{name}: A/V offset against the real mouth, held out (frames)", 1, distance(audio_row["av_offset_frames"]), f"of the mesh {best_lag(real, made, starts):+d}")]
        amplitude, ratio = audio_row["mouth_amplitude"], audio_row["lmd_iod"] / chance["lmd_iod"]
        note, of_lmd = f"of the mesh {made.std() / real.std():.2f}", f"{audio_row['lmd_px']:.2f} px; from the track {result['reconstruct']['lmd_iod'] / chance['lmd_iod']:.2f}"
        where = ("", None, "") if name != "grid" else ("0.8 to 1.2", 0.8 <= amplitude <= 1.2, "")
        rows += [Row(f"{name}: mouth amplitude, render over real", where[0], amplitude, where[1], note),
                 most(f"{name}: LMD over that of shuffled frames", 0.6, ratio, of_lmd) if name == "grid" else Row(f"{name}: LMD over that of shuffled frames", "", ratio, None, of_lmd)]
    return rows


def phantom(b: Bench) -> list[Row]:
    """The demo's person says sentences that it was not fitted on: lag against the exact motion, in its own voice and in others."""
    subject, run = b.subject("demo")
    model, truth = load_model("default"), Track.load(asset("demo/track.npz"))
    lags, fits = {}, []
    for voice in (VOICE, "en-gb-x-rp", "en-us+f3"):
        for number, text in enumerate(SENTENCES):
            samples, rate, phonemes = utterance(text, voice, 155, truth.fps)
            exact = lip_gap(phantom_track(phonemes, samples, rate, model, truth.shape, seed=number, fps=truth.fps), model)[0]
            made = lip_gap(predict_track(subject, run, samples, rate), subject.model)[0][: len(exact)]
            lags[f"{voice} {number + 1}"] = best_lag(exact[: len(made)], made)
            fits.append(pearson(exact[: len(made)], made) or 0.0)
    worst = max(map(distance, lags.values()))
    return [most("phantom: A/V offset against the exact mouth, unseen sentences, largest (frames)", 1, worst,
                 f"{len(lags)} utterances of {len(SENTENCES)} sentences, its own voice and two others; lags {sorted(set(lags.values()))}; lip gap correlation {min(fits):.2f} to {max(fits):.2f}")]


def pose(b: Bench, seconds: int = 300, seeds: int = 3) -> list[Row]:
    """Head speed and amplitude against the two halves of the footage, and whether five minutes of speech repeat themselves."""
    from scipy.stats import wasserstein_distance

    voices = np.concatenate([b.sound(name) for name in (*TEXTS, MANDARIN, "macron/macron.mp4")])
    rows = []
    for name in ("grid", "macron", "obama"):
        subject, run = b.subject(name)
        model, train, fps = Speaker(subject, run).pose, subject.frames("train"), subject.track.fps
        own = audio.load_audio(subject.audio_path)
        activity = audio.hear(np.resize(np.concatenate([voices, own]), seconds * audio.RATE), fps, round(seconds * fps)).activity
        real = model.layout.pack(subject.track)[train][:, :6]
        seam = np.isin(train[1:], subject.track.clip_starts) | (np.diff(train) != 1)
        speed = np.where(seam[:, None], np.nan, np.diff(real, axis=0))
        half, keep = len(real) // 2, lambda x: np.abs(x[np.isfinite(x)])
        ratios: dict[str, list[float]] = {"speed": [], "amplitude": []}
        repeats = []
        for seed in range(seeds):
            moved = model.sample(activity, seed)[:, :6]
            for k in range(6):
                ratios["speed"].append(wasserstein_distance(keep(np.diff(moved[:, k])), keep(speed[:, k])) / wasserstein_distance(keep(speed[:half, k]), keep(speed[half:, k])))
                ratios["amplitude"].append(wasserstein_distance(moved[:, k], real[:, k]) / wasserstein_distance(real[:half, k], real[half:, k]))
                x = moved[:, k] - moved[:, k].mean()
                power = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)[: len(x)] / np.arange(len(x), 0, -1)
                repeats.append(np.max(power[round(5 * fps) : len(x) // 2] / power[0]))
        rows += [most(f"{name}: Wasserstein distance of head {what}, of that between the halves", 1.3, np.mean(values),
                      f"mean of six coordinates and {seeds} seeds; {min(values):.2f} to {max(values):.2f}") for what, values in ratios.items()]
        rows.append(most(f"{name}: head autocorrelation beyond 5 s over 5 min", 0.5, max(repeats), f"largest of six coordinates and {seeds} seeds"))
    return rows


def best_of(work: Callable[[], Any], repeat: int = 3) -> tuple[float, float]:
    """Seconds of the quickest call: of all threads together, which other programs hardly change, and by the clock."""
    times = []
    for _ in range(repeat):
        start = time.process_time(), time.perf_counter()
        work()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return tuple(np.min(times, 0))


def speed(b: Bench) -> list[Row]:
    """Times real time, and how late a streamed frame comes."""
    voices = np.concatenate([b.sound(name) for name in (*TEXTS, MANDARIN)])
    seconds, frames = len(voices) / audio.RATE, round(len(voices) / audio.RATE * 25)
    phones = load_encoder("phones")

    def anew(*calls: Callable[[], Any]) -> Callable[[], None]:
        """Does `calls` without what the encoder remembers of the sound."""
        return lambda: [encoders._phone_scores.cache_clear(), *(call() for call in calls)]

    hear, close = lambda: phones.encode(voices), lambda: bilabial_probability(voices, 25, frames)
    rows = [Row("load of the machine while speeds are measured", "", os.getloadavg()[0], None, f"{os.cpu_count()} cores")]
    for what, asked, work in (("log-mel", 20, lambda: load_encoder("logmel").encode(voices)), ("phones", 8, anew(hear)), ("phones, bilabials and words (what closes the lips by default)", 8, anew(hear, close))):
        spent, wall = best_of(work)
        rows.append(least(f"{what}: times real time", asked, seconds / spent, f"of CPU time, all threads; by the clock {seconds / wall:.1f}; {seconds:.0f} s of recorded voices, best of 3"))
    subject, run = b.subject("grid")
    streamer, samples, packet, late, computing = Streamer(subject, run), b.sound("wav/jfk.wav"), audio.RATE // 50, [], []
    for begin in range(0, len(samples), packet):
        start = time.perf_counter()
        for frame in streamer.push(samples[begin : begin + packet]):
            late.append((begin + packet) / audio.RATE - frame.time)
        computing.append(time.perf_counter() - start)
    return [*rows, most("streaming: latency as stated (ms)", 200, 1000 * streamer.latency),
            most("streaming: sound heard beyond a frame's time when it comes, packets of 20 ms (ms)", 200, 1000 * np.median(late),
                 f"median; {1000 * min(late):.0f} to {1000 * max(late):.0f}, up to a packet above what is stated; computing takes {1000 * np.mean(computing):.1f} ms a packet")]


def prior(b: Bench) -> list[Row]:
    """What `--motion.prior` adds: lip gap of the mesh on held-out footage (or cross-validated over contiguous parts of all of it), and where there are few seconds to learn from."""
    rows = []
    for name, asked in (("macron", 0.3), ("obama", None)):
        subject, _ = b.subject(name)
        frames, fps = len(subject.track), subject.track.fps
        bounds = np.linspace(0, frames, b.folds + 1).astype(int).tolist()
        splits = [{"train": [list(r) for r in ((0, low), (high, frames)) if r[1] > r[0]], "test": [[low, high]]} for low, high in zip(bounds, bounds[1:])]
        tried = {"": splits if b.folds > 1 else [subject.info["split"]]}
        tried |= {f", learning from {s} s": [{"train": [[start, start + round(s * fps)]], "test": [[other, other + round(8 * fps)]]} for start, other in ((0, frames // 2), (frames // 2, 0))] for s in (5, 8)}
        for what, parts in tried.items():
            without, with_prior, note = compared(b, subject, name + what, parts)
            row = (f"{name}{what}: share of the gap to 1 that --motion.prior closes", (with_prior - without) / (1 - without), note)
            rows.append(Row(row[0], "", row[1], None, note) if asked is None or what else least(row[0], asked, row[1], note))
    return rows


def compared(b: Bench, subject: Subject, name: str, splits: list[dict[str, Any]]) -> tuple[float, float, str]:
    """Mean correlation over splits without and with the prior, and both in words."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for number, split in enumerate(splits):
        part = Subject(subject.path)
        part.__dict__["info"] = {**subject.info, "split": split}
        for use in found:
            run = b.folder / "prior" / f"{name.replace(',', '').replace(' ', '-')}-{number + 1}-of-{len(splits)}-{'with' if use else 'without'}"
            run.mkdir(parents=True, exist_ok=True)
            train_motion(part, run, MotionConfig(prior=use), UNHURRIED)
            found[use].append(pearson(*(np.concatenate(x) for x in spoken_gap(part, run))) or 0.0)
    without, with_prior = np.mean(found[False]), np.mean(found[True])
    parts = f"; means of {len(splits)} parts, " + ", ".join(f"{x:.2f} → {y:.2f}" for x, y in zip(*found.values())) if len(splits) > 1 else ""
    return float(without), float(with_prior), f"correlation {without:.3f} without, {with_prior:.3f} with{parts}"


PARTS = {"closures": closing, "silence": silence, "held": held, "phantom": phantom, "pose": pose, "speed": speed, "prior": prior}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=Path, required=True, help="folder of fitted and trained subjects")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--folds", type=int, default=1, help="parts of the footage, each held out once, with and without the prior; 1: what fit holds out")
    parser.add_argument("--json", type=Path, default=RESULTS / "bm_motion.json")
    args = parser.parse_args()
    data = footage()
    if data is None:
        parser.error("there is no footage; say where it is in THNERF_FOOTAGE")
    b = Bench(args.subjects, data, args.folds)
    done = json.loads(args.json.read_text())["parts"] if args.json.exists() else {}
    for name in args.parts:
        done[name] = {"machine": machine(), "rows": [dataclasses.asdict(row) for row in PARTS[name](b)]}
        result = {"benchmark": "motion", "command": "python tests/benchmarks/bm_motion.py --subjects FOLDER", "parts": {part: done[part] for part in PARTS if part in done}}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name} done", file=sys.stderr, flush=True)
    table([Row(**row) for name in PARTS if name in args.parts for row in done[name]["rows"]])


if __name__ == "__main__":
    main()
