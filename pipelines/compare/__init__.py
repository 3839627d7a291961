"""Two pictures that should be one: how far apart they are, what that means, and what may be the cause.

It works on pictures and on descriptions of runs, renders nothing and knows no model.
"""
