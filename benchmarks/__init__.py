"""Timings of the package against the plain loops of ``tests/reference``, in one run.

``python -m benchmarks`` in a checkout; see ``README.md`` beside this file.
"""
