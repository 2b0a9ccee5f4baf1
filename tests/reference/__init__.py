"""Plain loops written from the published methods; the fast code of the package must equal them.

Nothing here imports ``dam_lightning``, so that the two can disagree. Every random draw is an
argument.
"""
