"""Training of the learned models: volumes, synthesis, simulated acquisition, loop. Knows neither Nipype nor BIDS."""
