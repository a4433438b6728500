"""The shipped speech network: lips of unseen synthetic voices in time, closed on /p b m/, still in silence, noise and music; `animate` without a subject."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from thnerf_assets.recorded_voices import VOICES
from thnerf_assets.speech_corpus import made_up, music
from recon.model import load_model
from render.files import InputError
from render.rotations import angle_between
from thnerf import animate, audio, bilabials, speech_prior
from thnerf.phantom.motion import loudness
from thnerf.phantom.speech import speak
from thnerf.phantom.visemes import mouth_weights, viseme_sequence

TEXT = "My mother bought a map, but nobody was able to open the box before Monday."


@pytest.fixture(scope="module")
def spoken():
    samples, rate, phonemes = speak(TEXT, "en-us+m3", 150, 40)
    return audio.resample(samples, rate), phonemes


@pytest.fixture(scope="module")
def track(spoken):
    return animate.animate(spoken[0], seed=3)


def lip_gap(track) -> np.ndarray:
    model = load_model()
    points = model.points(model.vertices(track.shape, track.expression), "mediapipe478")[:, [13, 14], 1]
    return points[:, 0] - points[:, 1]


def test_lips_follow_a_voice_that_was_not_trained_on(spoken, track):
    samples, phonemes = spoken
    truth = mouth_weights(phonemes, loudness(samples, audio.RATE, len(samples) // 80 + 1), 200.0)["jawOpen"][4::8][: len(track)]
    jaw = track.column("jawOpen")
    scores = {k: np.corrcoef(jaw[8 + k : len(truth) - 8 + k], truth[8:-8])[0, 1] for k in range(-3, 4)}
    assert max(scores.values()) > 0.75 and abs(max(scores, key=scores.get)) <= 1


def test_lips_meet_on_bilabials(spoken, track):
    gap = lip_gap(track)
    limit = 0.15 * np.percentile(gap, 95)
    met = [gap[max(0, int(a * 25) - 2) : int(b * 25) + 3].min() < limit for symbol, a, b in spoken[1] if symbol in ("p", "b", "m")]
    assert len(met) >= 9 and np.mean(met) >= 0.7
    assert (gap < limit).mean() < 0.5


@pytest.mark.parametrize("kind", ["silence", "hiss", "hum", "music"])
def test_what_is_no_speech_does_not_flap_the_mouth(kind):
    time = np.arange(4 * audio.RATE) / audio.RATE
    sound = {"silence": 0 * time, "hiss": 0.1 * np.random.default_rng(0).normal(size=len(time)), "hum": 0.2 * np.sin(2 * np.pi * 50 * time),
             "music": 0.1 * music(np.random.default_rng(77), len(time))}[kind].astype(np.float32)
    with pytest.warns(UserWarning) if kind == "silence" else np.errstate():
        track = animate.animate(sound)
    rest = load_model()
    neutral = lip_gap(track.replace(expression=np.zeros((len(track), len(rest.expression_names)))))
    assert np.percentile(lip_gap(track) - neutral, 90) < 1.0
    assert np.percentile(track.column("jawOpen"), 90) < 0.05


def test_long_pauses_close_the_mouth(spoken):
    samples = spoken[0]
    silent = np.zeros(round(0.8 * audio.RATE), np.float32)
    track = animate.animate(np.concatenate([samples, silent, samples]))
    first = round(len(samples) / audio.RATE * 25)
    assert track.column("jawOpen")[first + 5 : first + 14].max() < 0.05 < track.column("jawOpen")[:first].max()


def test_seed_and_liveliness_move_the_head_only(spoken, track):
    other, still = animate.animate(spoken[0], seed=4), animate.animate(spoken[0], seed=3, liveliness=0)
    np.testing.assert_array_equal(track.column("jawOpen"), other.column("jawOpen"))
    assert np.abs(track.rotation - other.rotation).max() > 0.01
    assert angle_between(still.rotation, still.rotation[:1]).max() < 1e-3 and np.ptp(still.torso, 0).max() == 0
    again = animate.animate(spoken[0], seed=3)
    for name in ("expression", "rotation", "translation", "gaze", "torso"):
        np.testing.assert_array_equal(getattr(again, name), getattr(track, name))
    assert ((track.expression >= 0) & (track.expression <= 1)).all()


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_other_frame_rates_show_the_same(spoken, track, fps):
    other = animate.animate(spoken[0], seed=3, fps=fps)
    assert len(other) == round(len(spoken[0]) / audio.RATE * fps)
    time = (np.arange(len(track)) + 0.5) / 25
    there = np.interp(time, (np.arange(len(other)) + 0.5) / fps, other.column("jawOpen"))
    assert np.corrcoef(there[3:-3], track.column("jawOpen")[3:-3])[0, 1] > 0.97


def test_without_pocketsphinx_the_network_closes_the_lips(spoken, monkeypatch):
    monkeypatch.setattr(bilabials.importlib.util, "find_spec", lambda name: None)
    assert bilabials.heard_bilabials(spoken[0], 25, 50) is None
    assert np.isfinite(animate.animate(spoken[0]).expression).all()


def test_forward_backward_agrees_with_enumeration():
    rng = np.random.default_rng(1)
    score, follow = rng.normal(size=(4, 2)), np.array([[0.3, 0.7], [0.6, 0.4]])
    found = bilabials.phone_probabilities(score, follow)
    total = np.zeros((4, 2))
    states = [(p, s) for p in range(2) for s in range(3)]
    step = lambda a, b: (bilabials.STAY * (a == b) + (1 - bilabials.STAY) * (a[0] == b[0] and b[1] == a[1] + 1)  # noqa: E731
                         + (1 - bilabials.STAY) * (a[1] == 2 and b[1] == 0) * follow[a[0], b[0]])
    for path in np.ndindex(6, 6, 6, 6):
        chain = [states[i] for i in path]
        weight = np.prod([step(a, b) for a, b in zip(chain, chain[1:])]) * np.exp(sum(score[t, p] for t, (p, _) in enumerate(chain)))
        for t, (p, _) in enumerate(chain):
            total[t, p] += weight
    np.testing.assert_allclose(found, total / total.sum(1, keepdims=True), atol=1e-9)


def test_words_count_as_much_as_they_are_sure(monkeypatch):
    pytest.importorskip("pocketsphinx")
    names = bilabials._encoder().names
    word = lambda name, a, b, prob: SimpleNamespace(word=name, start_frame=a, end_frame=b, prob=prob)  # noqa: E731
    words = [word("<sil>", 0, 9, 1.0), word("maybe", 10, 49, 0.8), word("seven", 50, 89, 0.4), word("bob", 90, 92, 0.9)]  # the last is too short for its phones
    said = {"maybe": "M EY B IY", "seven": "S EH V AH N", "bob": "B AA B"}
    decoder = SimpleNamespace(reinit_feat=lambda: None, start_utt=lambda: None, process_raw=lambda raw, full_utt: None, end_utt=lambda: None,
                              hyp=lambda: words, seg=lambda: iter(words), lookup_word=said.get)
    monkeypatch.setattr(bilabials, "_recogniser", lambda: decoder)
    score = np.full((120, len(names)), -8.0)
    for k, phone in enumerate("M EY B IY".split()):
        score[11 + 10 * k : 21 + 10 * k, names.index(phone)] = 0
    found, doubt = bilabials.word_evidence(bytes(2 * 19040), score)
    sure = (40 * 0.8 + 40 * 0.4 + 3 * 0.9) / 83
    np.testing.assert_allclose(found[11:51], 0.8 * sure * np.repeat([bilabials.WORD_HAS, bilabials.WORD_LACKS] * 2, 10))
    np.testing.assert_allclose(found[51:91], 0.4 * sure * bilabials.WORD_LACKS)
    assert not found[:11].any() and not found[91:].any()
    known = (83 * sure + bilabials.EXPECTED * bilabials.KNOWN[0]) / (83 + bilabials.EXPECTED)
    assert bilabials.KNOWN[0] < known < bilabials.KNOWN[1]
    np.testing.assert_allclose(doubt, bilabials.DOUBT * (bilabials.KNOWN[1] - known) / (bilabials.KNOWN[1] - bilabials.KNOWN[0]))
    words[1:] = [word("maybe", 10, 109, 1.0)]
    assert not bilabials.word_evidence(bytes(2 * 19040), score)[1].any()
    words[1:] = [word("maybe", 10, 109, 0.1)]
    np.testing.assert_allclose(bilabials.word_evidence(bytes(2 * 19040), score)[1], bilabials.DOUBT)


def test_words_do_not_depend_on_what_was_heard_before(spoken):
    pytest.importorskip("pocketsphinx")
    hear = lambda: bilabials.bilabial_probability(spoken[0], 25, 100)  # noqa: E731
    first = hear()
    bilabials.bilabial_probability(0.3 * np.random.default_rng(0).normal(size=2 * audio.RATE).astype(np.float32), 25, 50)
    np.testing.assert_array_equal(first, hear())
    assert bilabials.bilabial_probability(np.zeros(0, np.float32), 25, 1).shape == (1,)


def test_preview_has_a_face_and_the_sound(spoken, track, tmp_path):
    from render.video import probe, read_frames

    animate.render_preview(track[:8], tmp_path / "head.mp4", (spoken[0][: 8 * 640], audio.RATE), size=96)
    frames = list(read_frames(tmp_path / "head.mp4"))
    assert len(frames) == 8 and frames[0].shape == (96, 96, 3) and frames[0][40:56, 44:52].mean() > 100 > frames[0][:8].mean()
    assert probe(tmp_path / "head.mp4").has_audio
    with pytest.raises(InputError, match="default face model"):
        animate.render_preview(track.replace(model_id="flame"), tmp_path / "x.mp4")


def test_prior_round_trip_and_damage(tmp_path):
    prior = speech_prior.load_prior()
    speech_prior.save_prior(tmp_path / "p.safetensors", prior)
    again = speech_prior.load_prior(tmp_path / "p.safetensors")
    x = np.random.default_rng(0).normal(size=(81, len(prior.mean))).astype(np.float32)
    np.testing.assert_array_equal(again.listen(x, 20).weights, prior.listen(x, 20).weights)
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:500])
    for name in ("broken.safetensors", "none.safetensors"):
        with pytest.raises(InputError):
            speech_prior.load_prior(tmp_path / name)
    assert (tmp_path / "p.safetensors").stat().st_size < 4_000_000


def test_chunks_of_the_prior_are_exact():
    prior = speech_prior.load_prior()
    net, x = prior.net, np.random.default_rng(0).normal(size=(4 * 120, len(prior.mean))).astype(np.float32)
    whole = net.predict(x, 120)
    begin = 60
    part = net.window(x[4 * begin - net.left : 4 * begin + 40 + net.right])
    np.testing.assert_allclose(part, whole[begin : begin + 10], atol=1e-5)


def test_a_word_is_speech_and_a_chord_is_not():
    chord = np.full(100, 0.7, np.float32)
    word = np.where(np.abs(np.arange(100) - 50) < 4, 0.97, 0.01).astype(np.float32)
    assert speech_prior.speaking(chord, 25).max() == 0
    assert speech_prior.speaking(word, 25)[45:56].min() == 1 and speech_prior.speaking(word, 25)[:15].max() == 0


def test_phones_of_recorded_voices_have_mouth_shapes():
    for voice in VOICES:
        for phone, symbol in voice.phones.items():
            assert viseme_sequence(symbol) != ("UH",) or symbol in ("V", "@"), (voice.name, phone)
    for language in {voice.language for voice in VOICES} - {"en"}:
        encoding = {voice.encoding for voice in VOICES if voice.language == language}.pop()
        text = made_up(language, np.random.default_rng(1))
        assert 5 <= len(text.split()) <= 9 and text.encode(encoding)
