"""Probes: benchmarks of the hot paths. They time and decide nothing: `flora-bench ab` and `compare` do.

A probe does the same work in every call, and its module imports no more than that work needs: each is started
anew many times when two revisions are measured in turn. Exact figures stand in `extra_info`. What takes a
good part of a second is `pedantic`: a few rounds, and none to find out how many there is time for.
"""
