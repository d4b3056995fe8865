"""Slides: open what a scanner wrote, find the tissue, cut tiles on a grid, keep the results.

To add a format: a class with the interface `base.Slide`, and a line in `open.open_slide`.
"""
