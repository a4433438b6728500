"""The phantom: a synthetic talking person with an exact Track, for people and tests without footage.

speech (text → sound and phoneme times) → motion (phonemes → Track) → appearance and scene (Track → video).
"""
