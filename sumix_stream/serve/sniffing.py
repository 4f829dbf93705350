"""Files that are sent where samples are expected, told by their first bytes."""

_KINDS = (  # name, where the bytes stand, the bytes
    ("a WAV file (RIFF)", ((0, b"RIFF"), (8, b"WAVE"))),
    ("a WAV file (RF64)", ((0, b"RF64"), (8, b"WAVE"))),
    ("an AIFF file", ((0, b"FORM"), (8, b"AIF"))),
    ("an Ogg file (OggS: Opus or Vorbis)", ((0, b"OggS\0"),)),
    ("a FLAC file (fLaC)", ((0, b"fLaC"),)),
    ("an MP3 file (ID3)", ((0, b"ID3"),)),
    ("a WebM or Matroska file", ((0, b"\x1a\x45\xdf\xa3"),)),
    ("an MP4 or M4A file (ftyp)", ((4, b"ftyp"),)),
    ("an AMR file", ((0, b"#!AMR"),)),
)


def compressed(data: bytes) -> str | None:
    """What is wrong with the first bytes of a stream, and the remedy; None for what may be samples."""
    for name, marks in _KINDS:
        if all(data[place : place + len(mark)] == mark for place, mark in marks):
            return (
                f"this is {name}, not samples; decode it first, such as with ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -"
            )
    return None
