"""Answers in the making, encrypted on disk, so that a client can take up one that broke off.

- `key.py`       the secret, and what is derived from it
- `frames.py`    a file as a row of encrypted frames
- `entries.py`   what the frames of one answer say
- `folder.py`    the files, bounded in size and age
- `writer.py`    the thread that writes
- `journal.py`   find an answer, record an answer
- `continuation.py`  an answer from what is recorded of it, and then from the verifier
"""
