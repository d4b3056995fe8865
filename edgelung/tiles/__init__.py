"""Tiles: find the files, read them, resize them.

find, lists, names   which files there are
reader               the one way to pixels: `table` decides what is read, a module per container
                     decodes, `colour` makes 8-bit RGB (CMYK: `tiff`, `jpeg`), `resize` the tile
"""
