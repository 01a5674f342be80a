"""Training of the learned models: volumes, synthesis, simulated acquisition, loop.

Nothing here imports Nipype. Of BIDS it uses file names and sidecars alone.
"""
