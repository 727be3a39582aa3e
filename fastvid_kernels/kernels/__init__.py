"""The Triton backend: eight launches and no host sync; a video's result does not depend on the rest of the batch.

In the order of the launches: `frame` and `plan` cut the video (DySeg), `gram`, `density`, `delta` and `select` choose
the tokens to keep (ATS, density peaks), `assign` and `emit` merge the others into anchors; `pipeline` launches them.
"""
