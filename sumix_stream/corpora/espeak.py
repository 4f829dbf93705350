"""Offline speech synthesis by eSpeak NG, through the shared library that PyPI's espeakng-loader carries."""

import ctypes

import numpy as np

_SYNCHRONOUS, _UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8 of speak_lib.h
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The synthesiser of this process: the library holds one global state, so make one object a process.

    That state carries from one utterance to the next (the phase of the voice's flutter): the same calls in the
    same order give the same samples, except for voices with breath noise (variants f2, f3, f5).
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise RuntimeError("speech synthesis needs eSpeak NG: pip install espeakng-loader") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG could not be initialised with {espeakng_loader.get_data_path()}")
        self._pieces: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # kept: ctypes does not hold a reference
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples: int, events) -> int:
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def say(self, text: str, voice: str, *, rate: int = 170, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
        """Samples (S,) float32 in [-1, 1] at `sample_rate`.

        Args:
            text: lower case, or capitals are read as abbreviations.
            voice: an eSpeak voice file and variant, such as `gmw/en-US+m3`.
            rate: words a minute, 80 to 450.
            pitch, pitch_range: 0 to 100.
        """
        self._pieces.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"voice {voice!r}: eSpeak NG has no such voice")
        for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode() + b"\0"
        if self._library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None):
            raise RuntimeError(f"eSpeak NG could not synthesise {text!r}")
        self._library.espeak_Synchronize()
        if not self._pieces:
            raise RuntimeError(f"eSpeak NG gave no samples for {text!r}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768
