"""The workflows in ``example_workflows/`` as code: what each shows, how it is laid out, and its thumbnail.

Written by ``python3 tasks.py templates``; nobody edits the files themselves.
"""
