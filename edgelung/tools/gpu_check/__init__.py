"""`edgelung gpu-check`: everything that only a GPU can prove, in one run of at most nine minutes.

check.py runs each part in a process of its own; parts.py lists the parts; device.py, engines.py and
folder.py measure. It works offline, with what is installed.
"""
