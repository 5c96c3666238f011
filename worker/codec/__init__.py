"""The Descript Audio Codec: codes to waveform and back, whole and streamed."""
