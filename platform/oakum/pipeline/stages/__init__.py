"""What each kind of stage does: one module a kind, each with `run(context) -> summary`.

A summary is small plain JSON that goes into the manifest, so that reports need no payload. A stage's key holds the
fingerprint of its module, so that editing one kind leaves the others' stored results valid.
"""
