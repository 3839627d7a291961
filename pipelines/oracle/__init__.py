"""AI Toolkit's own inference engine as a third witness: the cells of a replay, drawn there too over HTTP.

What is assumed of the engine stands in :mod:`.protocol`, what it is known not to do as the trainer in :mod:`.limits`.
"""
