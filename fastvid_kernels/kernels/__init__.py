"""The Triton backend: eight launches, no host sync, the same bits whatever a video's company.

In the order of the launches: `frame` and `plan` cut the video (DySeg), `gram`, `density`, `delta` and `select` choose
what is kept (ATS, density peaks), `assign` and `emit` merge the rest into it; `pipeline` launches them.
"""
