"""Voices made of recorded people, for `build_speech_prior.py`: eSpeak's formants alone would teach a network too little about real ones.

Debian's flite (statistical voices from CMU Arctic's readers, and a diphone voice) and festival (diphones, unit selection and statistical voices of readers in
six languages) tell the phones and when each ends; these become eSpeak's mnemonics. Install what `PACKAGES` names; nothing of it is needed otherwise.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thnerf.audio import load_audio
from thnerf.phantom.speech import Phoneme

PACKAGES = ("flite", "festival", "festvox-us-slt-hts", "festvox-ru", "festvox-czech-dita", "festvox-czech-krb", "festvox-czech-machac", "festvox-czech-ph", "festvox-italp16k",
            "festvox-itapc16k", "festvox-suopuhe-lj", "festvox-suopuhe-mv", "festvox-ca-ona-hts")
ARPABET = dict(aa="A", ae="a", ah="V", ao="O", aw="aU", ax="@", axr="3", ay="aI", b="b", ch="tS", d="d", dh="D", dx="d", eh="E", el="l", em="m", en="n", er="3", ey="eI", f="f", g="g",
               hh="h", hv="h", ih="I", ix="I", iy="i", jh="dZ", k="k", l="l", m="m", n="n", ng="N", nx="n", ow="oU", oy="OI", p="p", pau="_", r="r", s="s", sh="S", sil="_", t="t", th="T",
               uh="U", uw="u", v="v", w="w", y="j", z="z", zh="Z")
"""ARPAbet → eSpeak's mnemonics."""
_PAUSES = {"#": "_", "_": "_", "pau": "_"}
_CZECH = {**_PAUSES, "s~": "S", "z~": "Z", "c~": "tS", "dz~": "dZ", "r~": "Z", "~r": "Z", "c": "s", "dz": "z"}
_RUSSIAN = {**_PAUSES, "y": "I", "yy": "I", "ay": "I", "ae": "I", "ur": "U", "sh": "S", "sch": "S", "zh": "Z", "ch": "tS", "c": "s", "h": "x", "hh": "x", "ee": "E"}
_ITALIAN = {**_PAUSES, "J": "n", "ts": "s", "dz": "z"}
_CATALAN = {**_PAUSES, "ax": "@", "J": "n", "rr": "r", "ts": "s", "ch": "tS", "x": "S", "zh": "Z", "nx": "n"}


@dataclass(frozen=True)
class Voice:
    """Of a program, with its language, how festival reads its text, and its phones as eSpeak's mnemonics; those not named are eSpeak's already, or begin like them."""

    program: str
    name: str
    language: str
    phones: dict[str, str]
    encoding: str = "latin-1"


VOICES = (*(Voice("flite", name, "en", ARPABET) for name in ("slt", "rms", "awb", "kal16", "slt", "rms", "awb")), Voice("festival", "cmu_us_slt_arctic_hts", "en", ARPABET),
          *(Voice("festival", f"czech_{name}", "cs", _CZECH, "iso8859-2") for name in ("dita", "krb", "machac", "ph")), *(Voice("festival", "msu_ru_nsh_clunits", "ru", _RUSSIAN, "utf-8"),) * 3,
          *(Voice("festival", f"{name}_diphone", "it", _ITALIAN) for name in ("lp", "pc")), *(Voice("festival", f"{name}_diphone", "fi", _PAUSES) for name in ("suo_fi_lj", "hy_fi_mv")),
          Voice("festival", "upc_ca_ona_hts", "ca", _CATALAN))
"""Those named more than once speak more often: three of them were modelled on an hour of one reader each, and one is cut from such an hour."""


def read(text: str, voice: Voice, stretch: float) -> tuple[np.ndarray, list[Phoneme]]:
    """Samples (n,) at audio.RATE and phonemes [(mnemonic, start s, end s)] of `text`, spoken `stretch` times as slowly. Raises CalledProcessError when the program fails."""
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        if voice.program == "flite":
            done = subprocess.run(["flite", "-voice", voice.name, "--setf", f"duration_stretch={stretch:.2f}", "-psdur", "-t", text, "-o", str(wave)], check=True, capture_output=True)
            ends = [part.rsplit(":", 1) for part in done.stdout.decode().split()]
        else:
            script, labels = Path(folder) / "say.scm", Path(folder) / "phones"
            script.write_bytes(f"""(voice_{voice.name}) (Parameter.set 'Duration_Stretch {stretch:.2f})
(set! utt (utt.synth (Utterance Text "{text}"))) (utt.save.wave utt "{wave}" 'riff) (utt.save.segs utt "{labels}")""".encode(voice.encoding))
            subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
            ends = [[row[2], row[0]] for row in (line.split() for line in labels.read_text(errors="replace").splitlines()[1:]) if len(row) == 3]
        samples = load_audio(wave)
    phonemes, start = [], 0.0
    for phone, end in ends:
        phonemes.append((voice.phones.get(phone, phone), start, float(end)))
        start = float(end)
    return samples, phonemes
