"""The voices a job may speak with: a catalogue on disk, and their DAC codes kept at hand."""
