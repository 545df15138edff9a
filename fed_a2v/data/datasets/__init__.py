"""Data sets, one per file: each lists its clips and reads their audio (`fed_a2v.data.clips.ClipSource`)."""
