"""Audio encoders: one protocol, one clock, and a clear sentence for what is missing."""

import numpy as np
import pytest

from render.files import InputError
from thnerf import audio, encoders

VOWEL_AT = 1.0


def babble(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """Noise with a pulse train from VOWEL_AT to VOWEL_AT + 0.5 s."""
    rng = np.random.default_rng(seed)
    sound = 0.001 * rng.normal(size=round(seconds * audio.RATE))
    at = np.arange(round(VOWEL_AT * audio.RATE), round((VOWEL_AT + 0.5) * audio.RATE))
    sound[at] += 0.3 * np.sign(np.sin(2 * np.pi * 140 * at / audio.RATE))
    return sound.astype(np.float32)


def check(encoder: encoders.Encoder, samples: np.ndarray) -> np.ndarray:
    """The laws of the protocol."""
    features = encoder.encode(samples)
    assert features.shape == (len(samples) // 160 + 1, encoder.width) and features.dtype == np.float32
    assert np.isfinite(features).all() and encoder.lookahead_seconds >= 0 and encoder.name
    return features


def test_log_mel_does_not_change_beyond_its_look_ahead():
    encoder, samples = encoders.load_encoder("logmel"), babble()
    whole = check(encoder, samples)
    cut = round(1.2 * audio.RATE)
    level = audio.speech_level(audio.log_mel(samples))
    part = encoder.encode(samples[:cut], level)
    known = int((cut / audio.RATE - encoder.lookahead_seconds) * audio.FEATURE_RATE)
    np.testing.assert_allclose(part[:known], whole[:known], atol=1e-5)
    assert np.abs(part[known + 1 : known + 2] - whole[known + 1 : known + 2]).max() > 1e-3  # and the figure is not larger than it need be


def test_pitch_and_voicing_of_a_pulse_train():
    voicing, octaves = encoders.pitch(babble()).T
    voiced = slice(106, 144)
    assert voicing[voiced].min() > 0.8 and np.abs(octaves[voiced]).max() < 0.05
    assert voicing[:90].mean() < 0.5
    assert encoders.pitch(np.zeros(0, np.float32)).shape == (1, 2)


def test_phones_on_the_clock_of_the_other_encoder():
    pytest.importorskip("pocketsphinx")
    encoder = encoders.load_encoder("phones")
    features = check(encoder, babble())
    assert len(encoder.names) == 42 and {"AA", "B", "SIL"} <= set(encoder.names)
    posterior = np.exp(features[:, :42] * 2 - 8)
    total = posterior.sum(1)  # less than 1 between frames that disagree, as logarithms are interpolated
    assert total.max() < 1.05 and np.median(total) > 0.8
    energy = features[:, 42]
    rise = np.argmax(energy > 0.5 * energy.max())
    assert abs(rise / audio.FEATURE_RATE - VOWEL_AT) < 0.04
    for short in (1, 300, 700):
        check(encoder, babble()[:short])


def test_phones_are_those_that_are_said():
    pytest.importorskip("pocketsphinx")
    speech = pytest.importorskip("thnerf.phantom.speech")
    samples, rate, phonemes = speech.speak("She said her mother saw seven ships.", "en-us", 140)
    encoder = encoders.load_encoder("phones")
    features = encoder.encode(audio.resample(samples, rate))
    hits = []
    for symbol, a, b in phonemes:
        if symbol in ("s", "S"):
            middle = round((a + b) / 2 * audio.FEATURE_RATE)
            best = [encoder.names[i] for i in np.argsort(-features[middle, :42])[:4]]
            hits.append(bool({"S", "SH", "Z", "ZH"} & set(best)))
    assert len(hits) >= 4 and np.mean(hits) > 0.7


def test_alignment_finds_words_where_they_are():
    pytest.importorskip("pocketsphinx")
    from thnerf.alignment import forced_alignment
    from thnerf.phantom.speech import speak

    samples, rate, phonemes = speak("Peter bought a map.", "en-us", 130)
    found = forced_alignment(audio.resample(samples, rate), "peter bought a map")
    assert found[0][1] == 0 and all(a[2] == pytest.approx(b[1]) for a, b in zip(found, found[1:]))
    lips = [(a + b) / 2 for symbol, a, b in phonemes if symbol in "pbm"]
    assert len(lips) == 4
    for middle, (_, a, b) in zip(lips, [f for f in found if f[0] in "PBM"]):
        assert a - 0.15 < middle < b + 0.15
    with pytest.raises(InputError, match="zzyzzx"):
        forced_alignment(babble(), "zzyzzx")
    with pytest.raises(InputError, match="too short"):
        forced_alignment(babble()[:1600], "a rather long sentence for so little sound")


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_local_checkpoint_is_heard(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7, num_conv_pos_embeddings=8,
                 num_conv_pos_embedding_groups=2)
    config, model = (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model) if kind == "wav2vec2" else (transformers.HubertConfig, transformers.HubertModel)
    model(config(**small)).save_pretrained(tmp_path)
    encoder = encoders.load_encoder(tmp_path)
    assert encoder.width == 16 and encoder.hop == 320 and encoder.field == 400
    features = check(encoder, babble())
    moved = babble()
    moved[8000:8400] += 0.3
    assert np.abs(encoder.encode(moved) - features)[45:57].max() > 0
    check(encoder, babble()[:100])


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    for name in {"config.json", "model.safetensors"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=missing):
        encoders.load_encoder(tmp_path)


def test_joined_encoders_stand_side_by_side():
    pytest.importorskip("pocketsphinx")
    both, samples = encoders.load_encoder("logmel+phones"), babble()
    parts = [encoders.load_encoder(name) for name in ("logmel", "phones")]
    assert both.name == encoders.best_encoder() == "logmel+phones" and both.lookahead_seconds == parts[1].lookahead_seconds
    where = encoders.columns_of(both)
    assert list(where) == ["logmel", "phones"] and encoders.columns_of(parts[0]) == {"logmel": slice(0, parts[0].width)}
    features = both.encode(samples)
    assert features.shape[1] == both.width == where["phones"].stop
    for part in parts:
        np.testing.assert_array_equal(features[:, where[part.name]], part.encode(samples))
    with pytest.raises(InputError, match="twice"):
        encoders.load_encoder("phones+phones")


def test_without_pocketsphinx_speech_is_heard_as_log_mel(monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    assert encoders.best_encoder() == "logmel"


def test_unknown_encoders_are_refused():
    with pytest.raises(InputError, match="logmel, phones, the folder"):
        encoders.load_encoder("deepspeech")
