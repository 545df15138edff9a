"""A data set without files, for tests of what is made of its waveforms."""


class KeyedClips:
    """Clips that are what they are called; `waveform` is to be added."""

    def watched(self):
        return []

    def mtime_key(self, key):
        return None

    def content(self, key):
        return key
