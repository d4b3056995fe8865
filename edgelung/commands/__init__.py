"""One file a command: the options here, the work in the rooms, imported when the command runs."""
